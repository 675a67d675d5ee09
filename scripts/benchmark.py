"""How much time the library adds to the network passes that cannot be avoided.

    python scripts/benchmark.py generators --network sngan biggan
    python scripts/benchmark.py generators --labels scalars --set "widths=[64,64,64,64]" "discriminator_widths=[64]"
    python scripts/benchmark.py distillers --method kd --json times.json
    python scripts/benchmark.py distillers --method kd crd --teacher resnet32x4 --student resnet8x4 --device cuda

Sampling is compared with the bare forward pass of the same batches, a training step with its floor: the forward and
backward passes and the optimiser's updates that it must make, on inputs that are ready. The floor of a distillation
method repeats the passes that were seen in one of its steps. The two alternatives take turns, round by
round, so that a machine that slows down slows both; what is printed is the median of the rounds' ratios and their
quartiles. Seconds depend on the machine, ratios much less. OMP_NUM_THREADS sets the number of threads.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import itertools
import json
import math
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call

from gankd import provenance
from gankd.config import apply_override
from gankd.data.augment import Augment, AugmentationConfig
from gankd.data.loader import Batch, BatchSource
from gankd.data.sets import ImageSet
from gankd.distillers import METHODS, Distiller, build_distiller, check_method, method_config, sampling_of
from gankd.models import ModelConfig, build_model
from gankd.tasks import CLASSIFICATION, REGRESSION, task_of
from gankd.teacher import Normalize, Teacher
from gankd.training import TrainingConfig, build_optimizer
from generators.checkpoints import replace_whole
from generators.config import GeneratorConfig
from generators.game import Game
from generators.images import from_generator_range
from generators.interface import ConditionalGenerator
from generators.labels import ClassLabels, ScalarLabels
from generators.networks import NETWORKS, build_networks
from generators.randomness import mix, seeded
from generators.training import prefetch, update_average

NUM_IMAGES, NUM_CLASSES, LABEL_RANGE = 10_000, 10, (0.0, 90.0)
NUM_CHUNKS = 8  # batches that one call of the sampler draws
LEAST_SECONDS = 0.1  # of a turn: below, one would measure the scheduler


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Two alternatives, timed in turn; the ratio is that of the first to the second."""

    subject: str
    """A network or a method."""
    target: str
    """Where the ratio should be."""
    seconds: dict[str, list[float]]
    """Of one call of either alternative, a number a round."""
    images: int
    """Images that a call makes or trains on."""
    peak_memory: int
    """Bytes: on CUDA allocated by both alternatives, on the CPU resident since the process began."""

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Of the rounds' ratios; the middle one is the median."""
        ratios = [first / second for first, second in zip(*self.seconds.values(), strict=True)]
        return tuple(statistics.quantiles(ratios, n=4, method="inclusive"))

    def __str__(self) -> str:
        lower, median, upper = self.quartiles
        rates = [f"{self.images / statistics.median(seconds):,.0f}" for seconds in self.seconds.values()]
        return (
            f"{self.subject:27} {' / '.join(self.seconds):21} {median:6.3f} [{lower:.3f}, {upper:.3f}], want {self.target}; "
            f"{' and '.join(rates)} images/s, peak {self.peak_memory / 2**20:,.0f} MiB"
        )


def interleaved(
    alternatives: dict[str, Callable[[], object]],
    *,
    repeats: int,
    device: torch.device,
    least_seconds: float = LEAST_SECONDS,
) -> dict[str, list[float]]:
    """Seconds a call of each alternative, in `repeats` rounds in which they take turns (ABAB...).

    Two calls of each come first, which are not counted in: algorithms are chosen and optimisers make their state in the
    first; the second says how many calls make up a turn of `least_seconds`.
    """

    def turn(call: Callable[[], object], count: int) -> float:
        synchronize(device)
        started = time.perf_counter()
        for _ in range(count):
            call()
        synchronize(device)
        return (time.perf_counter() - started) / count

    for call in alternatives.values():
        turn(call, 1)
    counts = {name: max(1, math.ceil(least_seconds / turn(call, 1))) for name, call in alternatives.items()}
    seconds = {name: [] for name in alternatives}
    for _ in range(repeats):
        for name, call in alternatives.items():
            seconds[name].append(turn(call, counts[name]))
    return seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    subject: str, alternatives: dict[str, Callable[[], object]], *, target: str, images: int, repeats: int, device
) -> Measurement:
    """Time two alternatives against each other, and note the memory that they need."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = interleaved(alternatives, repeats=repeats, device=device)
    return Measurement(subject, target, seconds, images, peak_memory(device))


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated on a CUDA device since the last reset, or resident since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def machine(device: torch.device) -> dict[str, str | int]:
    """What the times were measured on."""
    name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {**provenance.versions(), "device": f"{device.type} ({name})", "threads": torch.get_num_threads()}


# --- generators -------------------------------------------------------------------------------------------------------


def measure_generator(
    config: GeneratorConfig, *, scalars: bool, size: int, accelerator: Accelerator, repeats: int
) -> Iterator[Measurement]:
    """Sampling, then the training step, of fresh networks on noise [NUM_IMAGES, 3, size, size].

    Raises:
        ValueError: a size or a kind of label that the networks cannot take.
    """
    device = accelerator.device
    num_classes, label_range = (None, LABEL_RANGE) if scalars else (NUM_CLASSES, None)
    images = torch.randint(256, (NUM_IMAGES, 3, size, size), dtype=torch.uint8)
    labels = torch.arange(NUM_IMAGES) % (LABEL_RANGE[1] + 1.0 if scalars else NUM_CLASSES)
    generator, discriminator = build_networks(config, tuple(images.shape[1:]), num_classes, label_range)
    for network in (generator, discriminator):
        network.to(device, memory_format=torch.channels_last)

    rows = labels[: NUM_CHUNKS * config.batch_size]
    alternatives = sampling(generator.eval(), rows, config.batch_size)
    yield measure(config.network, alternatives, target=">= 0.9", images=len(rows), repeats=repeats, device=device)

    plan = ScalarLabels(labels, label_range, config) if scalars else ClassLabels(labels)
    game = Game(generator.train(), discriminator.train(), plan, config, accelerator)
    with game_step(game, images.to(device)) as step:
        alternatives = {"training step": step, "floor": game_floor(game, size)}
        seen = config.batch_size * config.discriminator_steps
        yield measure(config.network, alternatives, target="<= 1.1", images=seen, repeats=repeats, device=device)


def sampling(generator: ConditionalGenerator, labels: Tensor, batch_size: int) -> dict[str, Callable[[], object]]:
    """The bare forward pass, and all from labels in the user's units to uint8 images on the device, on the same batches."""
    chunks = labels.split(batch_size)
    y, z = generator.condition(chunks[0]), generator.draw_latents(len(chunks[0]))

    @torch.no_grad()
    def forward() -> None:
        for chunk in chunks:
            generator(z[: len(chunk)], y[: len(chunk)])

    def sample() -> None:
        for chunk in chunks:
            from_generator_range(generator.sample(chunk))

    return {"bare forward": forward, "sample": sample}


@contextlib.contextmanager
def game_step(game: Game, images: Tensor) -> Iterator[Callable[[], object]]:
    """One step of `generators.train`, as a function of no arguments."""
    config, generator = game.config.replace(steps=sys.maxsize), game.generator
    average = copy.deepcopy(generator)
    batches = prefetch(images, game.plan, config, seed=0, rank=0, size=config.batch_size, first_step=0)
    numbers = itertools.count()

    def step() -> None:
        number = next(numbers)
        torch.manual_seed(mix(0, "generator step", number, 0))
        for batch in next(batches):
            game.discriminator_step(batch)
        y = game.plan.generator_batch(config.batch_size // 2, seeded(0, "generator labels", number, 0))
        game.generator_step(y.to(game.device))
        update_average(average, generator, number, config.ema_decay)

    with contextlib.closing(batches):
        yield step


def game_floor(game: Game, size: int) -> Callable[[], object]:
    """What a step cannot do without, on inputs that are ready.

    Every discriminator update: the generator's forward pass for B fakes, the discriminator's forward and backward pass on
    2B images. The generator's update: forward through both networks on B, backward to the generator. Both optimisers.
    Penalties and a batch in several passes are not in it: where the settings ask for them, they count as time on top.
    """
    config, device, autocast = game.config, game.device, game.accelerator.autocast
    generator, discriminator = game.generator, game.discriminator
    weights = [parameter for parameter in discriminator.parameters() if parameter.requires_grad]
    # a learning rate of zero costs the same, and leaves the networks to the step
    optimizers = [
        torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.0, betas=config.betas, fused=True)
        for network in (generator, discriminator)
    ]
    z = torch.randn(config.batch_size, generator.config.latent_dim, device=device)
    y = game.plan.generator_batch(config.batch_size, seeded(0, "floor")).to(device)
    both, both_y = torch.randn(2 * config.batch_size, 3, size, size, device=device), torch.cat([y, y])
    both = both.contiguous(memory_format=torch.channels_last)

    def floor() -> None:
        for _ in range(config.discriminator_steps):
            with torch.no_grad(), autocast():
                generator(z, y)
            with autocast():
                logits = discriminator(both, both_y)
            update([logits], optimizers[1])
        for weight in weights:
            weight.requires_grad_(False)
        with autocast():
            logits = discriminator(generator(z, y), y)
        update([logits], optimizers[0])
        for weight in weights:
            weight.requires_grad_(True)

    return floor


def update(outputs: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
    """The backward pass from the cheapest loss there is, and the optimiser's update."""
    optimizer.zero_grad(set_to_none=True)
    sum(output.float().mean() for output in outputs).backward()
    optimizer.step()


# --- distillers -------------------------------------------------------------------------------------------------------


TEACHER = ModelConfig(options={"widths": (64, 128, 256)})
STUDENT = ModelConfig(options={"widths": (32, 64, 128)})
OF_LABELS = ("supervised", "label_smoothing", "focal", "max_entropy", "virtual_softmax", "tf_kd_reg", "mixup", "cutmix")
TARGETS = {name: 1.05 for name in ("kd", "ctkd", "sp", "pkt", "rkd", "zipf_ls", "hsakd", *OF_LABELS)} | {"crd": 1.15}
"""Of step to floor, by method; of all others it is 1.1."""
NUM_SAMPLES = {"crd": 50_000}
"""Images by method, where they are not NUM_IMAGES: the banks and the 16,384 negatives of CRD are those of CIFAR-100."""
COUNTED = re.compile(
    r"(.*\.)?(student|others|key_encoders|branches|fixed_branches|self_teacher|self_teacher_head|fusion|extractions"
    r"|transfer|discriminators)(\.\d+)?"
)
"""Modules of a distiller whose passes belong to the floor beside its teacher's: students, branches, what fuses or judges
them. Small heads that fit features to one another do not: they are what a method costs on top."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One pass through a network, as a training step made it."""

    network: nn.Module
    inputs: tuple
    """Tensors, or lists of them."""
    with_gradient: bool
    weights: dict[str, Tensor] | None
    """In place of the network's own, of a network that is trained, but not by this pass."""

    def repeat(self) -> list[Tensor]:
        """Those of the outputs that a backward pass can start from."""
        inputs = on_leaves(self.inputs)
        with torch.set_grad_enabled(self.with_gradient):
            if self.weights is not None:
                outputs = functional_call(self.network, self.weights, inputs)
            else:
                outputs = self.network(*inputs)
        return [output for output in tensors_in(outputs) if output.requires_grad]


def on_leaves(inputs):
    """Nested tensors, cut off from what made them, maps [N, C, H, W] in the layout that the networks run in; those that want
    a gradient still do."""
    if isinstance(inputs, Tensor):
        layout = torch.channels_last if inputs.ndim == 4 else torch.contiguous_format
        return inputs.detach().contiguous(memory_format=layout).requires_grad_(inputs.requires_grad)
    return type(inputs)(map(on_leaves, inputs))


def tensors_in(outputs) -> list[Tensor]:
    """Of nested lists and tuples."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for part in outputs for tensor in tensors_in(part)]


def calls_of(distiller: Distiller, batch: Batch) -> list[Call]:
    """The passes that the method makes through its networks in one step; those within another pass belong to it."""
    networks = [module for name, module in distiller.named_modules() if COUNTED.fullmatch(name)]
    if distiller.teacher is not None:
        networks.append(distiller.teacher.module)
    trained = {network for network in networks if any(p.requires_grad for p in network.parameters())}
    calls, running = [], []

    def begin(network: nn.Module, inputs: tuple) -> None:
        if not running:
            weights = dict(network.named_parameters())  # afd lends its discriminators frozen ones
            is_frozen = network in trained and not any(weight.requires_grad for weight in weights.values())
            calls.append(Call(network, on_leaves(inputs), torch.is_grad_enabled(), weights if is_frozen else None))
        running.append(network)

    def end(*_) -> None:
        running.pop()

    with contextlib.ExitStack() as hooks:
        for network in networks:
            hooks.callback(network.register_forward_pre_hook(begin).remove)
            hooks.callback(network.register_forward_hook(end).remove)
        distiller(batch)
    return calls


def measure_distiller(
    name: str, dataset: ImageSet, *, batch_size: int, accelerator: Accelerator, repeats: int, **networks: ModelConfig
) -> Measurement:
    """The training step of a method with its default settings; networks: see `fresh_distiller`."""
    training = TrainingConfig(
        batch_size=batch_size, augmentation=AugmentationConfig(crop_padding=4, horizontal_flip=True)
    )
    drawn = sampling_of(method_config(name), task_of(dataset).kind)
    source = BatchSource(dataset, batch_size=batch_size, device=accelerator.device, sampling=drawn)
    distiller = fresh_distiller(name, dataset, source, training, **networks)
    alternatives = {
        "training step": distiller_step(distiller, source, training, accelerator),
        "floor": distiller_floor(distiller, source, training, accelerator),
    }
    common = {"images": batch_size, "repeats": repeats, "device": accelerator.device}
    target = f"<= {TARGETS.get(name, 1.1):.2f}"
    return measure(f"{name} ({distiller.task.kind})", alternatives, target=target, **common)


def fresh_distiller(
    name: str,
    dataset: ImageSet,
    source: BatchSource,
    training: TrainingConfig,
    *,
    teacher: ModelConfig = TEACHER,
    student: ModelConfig = STUDENT,
) -> Distiller:
    """A method that trains a fresh network, from another one where it needs a teacher, in training mode.

    It stands in the middle of its training, past first stages and warm-ups, which cost other times than most steps do.
    """
    task, normalize, device = task_of(dataset), Normalize.of(dataset.images).to(source.device), source.device
    if name == "fsp":  # which has no heads between unlike numbers of channels
        teacher = student
    teacher_network, student_network = (
        build_model(model.name, task.num_outputs, dataset.image_shape[0], **model.options).to(
            device, memory_format=torch.channels_last
        )
        for model in (teacher, student)
    )
    distiller = build_distiller(
        student_network,
        Teacher(teacher_network, normalize, device=device) if METHODS[name].needs_teacher else None,
        task,
        method_config(name),
        augment=Augment(training.augmentation),
        normalize=normalize,
        data=source,
    )
    distiller.to(device, memory_format=torch.channels_last).train()
    distiller.prepare(source)
    distiller.start_step(training.steps // 2, training.steps, source.steps_per_epoch)
    return distiller


def distiller_step(
    distiller: Distiller, source: BatchSource, training: TrainingConfig, accelerator: Accelerator
) -> Callable[[], object]:
    """One step of `gankd.training.fit`, as a function of no arguments."""
    optimizer = build_optimizer(distiller, training)
    batches, numbers = source.stream(0, sys.maxsize), itertools.count()

    def step() -> None:
        torch.manual_seed(mix(0, "training step", next(numbers), 0))
        batch = next(batches)
        with accelerator.autocast():
            losses = distiller(batch)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimizer.step()
        torch.stack([term.detach().float() for term in losses.values()])

    return step


def distiller_floor(
    distiller: Distiller, source: BatchSource, training: TrainingConfig, accelerator: Accelerator
) -> Callable[[], object]:
    """What a step cannot do without: the passes through its networks, each with inputs that are ready, one backward pass
    through all of them, the optimiser's update."""
    optimizer = build_optimizer(distiller, training)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    with accelerator.autocast():
        calls = calls_of(distiller, source.batch(0))

    def floor() -> None:
        with accelerator.autocast():
            outputs = [output for call in calls for output in call.repeat()]
        update(outputs, optimizer)

    return floor


def kinds(name: str) -> list[str]:
    """The tasks that a method with its default settings is defined for, regression of a scalar among them."""
    defined = []
    for kind in (CLASSIFICATION, REGRESSION):
        with contextlib.suppress(ValueError):
            check_method(method_config(name), kind, has_teacher=True)
            defined.append(kind)
    return defined


def noise(kind: str, size: int, num_samples: int) -> ImageSet:
    """Random images with labels of either kind."""
    labels = torch.arange(num_samples) % NUM_CLASSES
    return ImageSet(
        images=torch.randint(256, (num_samples, 3, size, size), dtype=torch.uint8),
        labels=labels if kind == CLASSIFICATION else labels.float(),
        class_names=tuple(map(str, range(NUM_CLASSES))) if kind == CLASSIFICATION else None,
        name="noise",
    )


# --- command ----------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--batch-size", type=int, default=64, help="images (default: 64)")
    common.add_argument("--size", type=int, default=32, help="side of the images in pixels (default: 32)")
    common.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    common.add_argument("--repeats", type=int, default=15, help="rounds, 2 or more (default: 15)")
    common.add_argument("--json", type=Path, metavar="FILE", help="write the times of all rounds there")
    generators = commands.add_parser("generators", parents=[common], help="sampling and the adversarial training step")
    generators.add_argument("--network", nargs="+", choices=NETWORKS, default=["sngan"], help="default: sngan")
    generators.add_argument("--labels", choices=("classes", "scalars"), default="classes", help="default: classes")
    generators.add_argument("--set", nargs="+", default=[], metavar="key=value", help="settings: widths=[64,64,64,64]")
    distillers = commands.add_parser("distillers", parents=[common], help="the training steps of the methods")
    distillers.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    small = "default: a small residual network"
    distillers.add_argument("--teacher", metavar="NAME", help=f"network, e.g. resnet32x4 ({small}; fsp: the student's)")
    distillers.add_argument("--student", metavar="NAME", help=f"network, e.g. resnet8x4 ({small})")
    distillers.add_argument(
        "--num-samples",
        type=int,
        metavar="N",
        help=f"images (default: {NUM_SAMPLES['crd']} for crd, else {NUM_IMAGES})",
    )
    args = parser.parse_args(arguments)
    try:
        return run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    if args.repeats < 2:
        raise ValueError(f"--repeats {args.repeats} gives no quartiles; take 2 or more.")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch finds no CUDA device; use --device cpu.")
    accelerator = Accelerator(cpu=args.device == "cpu")
    facts = machine(accelerator.device)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(
        f"batches of {args.batch_size}, {args.size} pixels, {args.repeats} rounds: median [quartiles] of their ratios"
    )
    measure_all = measure_generators if args.command == "generators" else measure_distillers
    rows = []
    for measurement in measure_all(args, accelerator):
        print(measurement, flush=True)
        row = dataclasses.asdict(measurement)
        rows.append({**row, "quartiles": measurement.quartiles})
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        with replace_whole(args.json) as temporary:
            temporary.write_text(json.dumps({"machine": facts, "settings": settings, "measurements": rows}, indent=2))
    return 0


def measure_generators(args: argparse.Namespace, accelerator: Accelerator) -> Iterator[Measurement]:
    for network in args.network:
        values = {"network": network, "batch_size": args.batch_size}
        for setting in args.set:
            apply_override(values, setting)
        options = {"scalars": args.labels == "scalars", "size": args.size, "repeats": args.repeats}
        yield from measure_generator(GeneratorConfig.of(values), accelerator=accelerator, **options)


def measure_distillers(args: argparse.Namespace, accelerator: Accelerator) -> Iterator[Measurement]:
    options = {"batch_size": args.batch_size, "accelerator": accelerator, "repeats": args.repeats}
    for role in ("teacher", "student"):
        if getattr(args, role):
            options[role] = ModelConfig(name=getattr(args, role))
    for name in args.method:
        num_samples = args.num_samples or NUM_SAMPLES.get(name, NUM_IMAGES)
        for kind in kinds(name):
            yield measure_distiller(name, noise(kind, args.size, num_samples), **options)


if __name__ == "__main__":
    raise SystemExit(main())
