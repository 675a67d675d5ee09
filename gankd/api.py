"""The library way: distil, synthesise and evaluate with the user's own modules and data sets.

    synthetic = gankd.synthesize(generator, teacher, real=train, num_samples=20_000)
    student = gankd.distill(student, teacher, real=train, synthetic=synthetic, method="kd", steps=2000)
    print(gankd.evaluate(student, test))

The stages of `pipeline` call these same functions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn
    from torch.utils.data import Dataset

    from gankd.data.loader import BatchSource
    from gankd.data.readers import Kind
    from gankd.data.sets import ImageSet
    from gankd.data.splits import Splits
    from gankd.evaluation import ProbeResult
    from gankd.methods import Distiller, Method, MethodConfig, Outputs
    from gankd.models.inputs import Normalize
    from gankd.models.teacher import Teacher
    from gankd.synthesis.config import SynthesisConfig
    from gankd.tasks import Task
    from gankd.training import TrainingConfig
    from generators.interface import ConditionalGenerator

    AnyMethod: TypeAlias = str | dict[str, Any] | MethodConfig | type[Method] | Callable[[Outputs], Tensor]

Log = Callable[[dict], None]
"""Receives one flat dictionary every `log_every` steps; None: nobody does."""


def load_data(name: str, *, kind: Kind = "classification", seed: int = 0, **settings) -> Splits:
    """The splits of a data source by name: load_data("digits", image_size=16, labelled=100). Settings: see `DataConfig`."""
    from gankd.data import readers
    from gankd.data.config import DataConfig

    return readers.read_data(DataConfig.of({"name": name, **settings}), kind=kind, seed=seed)


def distill(
    student: nn.Module,
    teacher: nn.Module | Teacher | None = None,
    *,
    real: Dataset | None = None,
    synthetic: Dataset | None = None,
    method: AnyMethod = "kd",
    synthetic_fraction: float | None = None,
    training: TrainingConfig | None = None,
    task: Task | None = None,
    normalize: Normalize | None = None,
    seed: int = 0,
    directory: str | Path | None = None,
    accelerator: Accelerator | None = None,
    memory_budget: int = 2 << 30,
    workers: int = 2,
    name: str = "student",
    log: Log | None = None,
    **settings,
) -> nn.Module:
    """Train `student` (in place) on real data, synthetic data or both, and return it in eval mode.

    student: any module from normalised images [N, C, H, W] to logits [N, K] or a scalar [N] or [N, 1].
    teacher: a module of the same kind (inputs normalised like the student's, unless it was trained by gankd and knows
        its own), or a `Teacher`; None for methods without one.
    real, synthetic: map-style data sets of (image, label), `ImageSet`s among them. Images: see `as_image_set`.
    method: a name, or a dictionary of a method's settings with `name`: {"name": "kd", "temperature": 2}; or a class or
        function of your own (docs/extending.md).
    synthetic_fraction: share of synthetic samples in every batch; None mixes the union of both sets uniformly.
    training, **settings: the training's settings, and single ones that replace them or the method's (steps=2000,
        learning_rate=0.01, temperature=2).
    task: None takes what the labels say: class ids or a scalar.
    normalize: of the student's input; None computes mean and standard deviation per channel of the real images.
    directory: where checkpoints go; a run cut off there is resumed.

    The returned student carries `input_normalization` (means, standard deviations per channel of inputs in [0, 1]) and
    `output_task` (what its outputs mean), which `evaluate` and a later `distill` with it as the teacher use.
    Raises ValueError: neither data set, labels out of range, a method that does not fit the task, a diverged loss.
    """
    from gankd.training import distillation

    context = _context(seed, directory, accelerator, memory_budget, workers, name, log)
    chosen: dict[str, Any] = {"method": method, "training": training, "task": task, "normalize": normalize}
    chosen["settings"] = settings
    device = context.accelerator.device
    lesson = distillation.lesson_of(real, synthetic, synthetic_fraction, **chosen, device=device)
    return distillation.learn(student, teacher, lesson, context)


def distiller(
    student: nn.Module,
    teacher: nn.Module | Teacher | None = None,
    *,
    real: Dataset | None = None,
    synthetic: Dataset | None = None,
    method: AnyMethod = "kd",
    synthetic_fraction: float | None = None,
    task: Task | None = None,
    normalize: Normalize | None = None,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    memory_budget: int = 2 << 30,
    workers: int = 2,
    **settings,
) -> tuple[Distiller, BatchSource]:
    """What `distill` trains, for a loop of your own: the module that holds student, heads and banks, and its batches.

        distiller, batches = gankd.distiller(student, teacher, real=train, method="crd", batch_size=64)
        losses = distiller(next(iter(batches)))  # named losses, "loss" the total

    Iterating over the batches begins at step 0 and never ends; `batches.batch(step)` is that of a step. The student stays
    where it is, its auxiliary outputs are left out, and the teacher is frozen from here on.

    **settings: `batch_size` and `augmentation`, as in `distill`, and single settings of the method.
    Raises ValueError: as `distill`.
    """
    from gankd.training import distillation

    context = _context(seed, None, accelerator, memory_budget, workers, "distiller", None)
    chosen: dict[str, Any] = {"method": method, "training": None, "task": task, "normalize": normalize}
    chosen["settings"] = settings
    device = context.accelerator.device
    lesson = distillation.lesson_of(real, synthetic, synthetic_fraction, **chosen, device=device)
    return distillation.prepare(student, teacher, lesson, context)


def pretrain(
    student: nn.Module,
    teacher: nn.Module | Teacher | list[nn.Module | Teacher] | None = None,
    *,
    real: Tensor | Dataset | None = None,
    synthetic: Tensor | Dataset | None = None,
    method: AnyMethod = "squeeze_and_span",
    synthetic_fraction: float | None = None,
    online_probe: bool = False,
    training: TrainingConfig | None = None,
    normalize: Normalize | None = None,
    seed: int = 0,
    directory: str | Path | None = None,
    accelerator: Accelerator | None = None,
    memory_budget: int = 2 << 30,
    workers: int = 2,
    name: str = "backbone",
    log: Log | None = None,
    **settings,
) -> nn.Module:
    """Train the backbone of `student` (in place) without labels, and return it in eval mode; its last layer stays as it is.

    What comes back is the initial student of `distill`, or what `probe` measures.

    teacher: of simreg: one network or several, read at the input of their last linear layer; inputs as in `distill`.
    real, synthetic: uint8 images [N, C, H, W], or map-style data sets of images or of (image, anything);
        squeeze_and_span needs the synthetic ones of `feature_set`. No label is read.
    online_probe: fit a linear layer to the labels of the real images on the side; the log then has `probe_metric`
        (top-1 in %, or the mean absolute error), and the backbone, which gets no gradient of it, is the same.
    training, **settings: as in `distill`, with the method's own augmentation where `training` is None; photographs want
        horizontal_flip too.
    method, synthetic_fraction, normalize, directory: as in `distill`.
    Raises ValueError: neither data set, a method that learns from labels, two views that are the same, a diverged loss.
    """
    from gankd.training import distillation

    return distillation.learn_without_labels(
        student,
        teacher,
        real=real,
        synthetic=synthetic,
        method=method,
        synthetic_fraction=synthetic_fraction,
        online_probe=online_probe,
        training=training,
        normalize=normalize,
        context=_context(seed, directory, accelerator, memory_budget, workers, name, log),
        settings=settings,
    )


def _context(seed, directory, accelerator, memory_budget, workers, name, log):
    """The `RunContext` of what a caller said about where and how to train."""
    from accelerate import Accelerator

    from gankd.training.context import RunContext, no_log

    directory = Path(directory) if directory else None
    return RunContext(accelerator or Accelerator(), seed, directory, memory_budget, workers, name, log or no_log)


def feature_set(
    generator: ConditionalGenerator,
    num_samples: int,
    *,
    seed: int = 0,
    directory: str | Path | None = None,
    accelerator: Accelerator | None = None,
) -> ImageSet:
    """A generator's samples with its own features of them, for methods that learn from these.

    Without a directory the generator draws them while a student is trained, and none is kept: `num_samples` may be as many
    as the run looks at. With one they are written to a store, whose training needs no generator; a finished store with the
    same inputs is read back, one cut off is continued. Sample i is the same both ways.
    Raises ValueError: a generator without known features, or a `directory` that holds something else.
    """
    from accelerate import Accelerator

    from gankd.data.live import live_set
    from gankd.experiment.artifacts import StageDirectory
    from gankd.fingerprints import fingerprint
    from gankd.synthesis.feature_store import write_feature_store
    from gankd.synthesis.store import load_store

    accelerator = accelerator or Accelerator()
    live = live_set(generator.to(accelerator.device), num_samples, seed=seed)
    if directory is None:
        return live
    stage = StageDirectory(Path(directory), {"generated": fingerprint(live)}, replace=None)
    with stage.once(accelerator) as results:
        if results is not None:
            provenance = {"inputs": stage.inputs}
            samples: Any = live.images
            write_feature_store(samples, stage.directory, accelerator=accelerator, provenance=provenance)
    return load_store(stage.directory)


def probe(
    model: nn.Module,
    train: Dataset,
    test: Dataset,
    *,
    normalize: Normalize | None = None,
    seed: int = 0,
    accelerator: Accelerator | None = None,
) -> dict[str, ProbeResult]:
    """How much the frozen features of `model` know of the labels of `train` and `test`: linear probe and nearest neighbours
    (classes), ridge regression and nearest neighbours (scalars); printing a result says how it was measured.

    The sets need not be those that the model was trained on (transfer). Images are taken as they are, without augmentation.

    train: what probes are fitted to, and the neighbours' bank.
    normalize: of the model's input; None takes what a model trained by gankd carries, else that of `train`.
    seed: of the part of `train` on which the probes' regularisation is chosen.
    """
    from accelerate import Accelerator

    from gankd import evaluation
    from gankd.data.inputs import as_image_set
    from gankd.data.sets import match_classes
    from gankd.models.inputs import normalization_for
    from gankd.training.distillation import asked_normalization

    accelerator = accelerator or Accelerator()
    train, test = as_image_set(train, "train"), as_image_set(test, "test")
    test = match_classes(test, train.class_names, "the training set")
    normalize = asked_normalization(normalize) or normalization_for(model, train)
    features = [
        evaluation.labelled_features(model, part, normalize=normalize, device=accelerator.device)
        for part in (train, test)
    ]
    return evaluation.measure(*features, seed=seed)


def synthesize(
    generator: ConditionalGenerator,
    teacher: nn.Module | Teacher,
    *,
    real: Dataset,
    num_samples: int,
    config: SynthesisConfig | None = None,
    task: Task | None = None,
    seed: int = 0,
    directory: str | Path,
    accelerator: Accelerator | None = None,
    log: Log | None = None,
    **settings,
) -> ImageSet:
    """Draw labelled images from `generator`, keep those that look real and that the teacher agrees with (cGAN-KD).

    real: the real training data: it says what real images look like (M1) and which labels there are.
    num_samples: how many samples to return, balanced over classes.
    config, **settings: the synthesis' settings, and single ones that replace them (rho=0.7, subsample=...).
    directory: where the store is written (see `synthesis.store`); a finished one with the same inputs is read back, one
        cut off is continued.
    Raises ValueError: too few samples survive, the generator's labels or images do not fit the real data, or
    `directory` holds a store made from something else.
    """
    import contextlib

    from accelerate import Accelerator
    from torch import nn

    from gankd.data.inputs import as_image_set
    from gankd.experiment.artifacts import StageDirectory
    from gankd.fingerprints import fingerprint
    from gankd.models.inputs import Normalize
    from gankd.models.state import preserve_state
    from gankd.synthesis.config import SynthesisConfig
    from gankd.synthesis.stage import Synthesis
    from gankd.synthesis.store import load_store
    from gankd.training.context import no_log
    from gankd.training.distillation import as_teacher, asked_task, check_networks, in_task
    from generators.interface import ConditionalGenerator

    if not isinstance(generator, ConditionalGenerator):
        raise ValueError(
            f"generator is a {type(generator).__name__}; give one of load_generator, or generators.wrap(...) of a network "
            "or a function of latents and labels."
        )
    check_networks(nn.Module(), teacher)
    accelerator = accelerator or Accelerator()
    real, directory = as_image_set(real, "real"), Path(directory)
    task = asked_task(task, real)
    real = in_task(real, task)
    config = (config or SynthesisConfig()).replace(num_samples=num_samples, **settings)
    with contextlib.ExitStack() as lent:
        for module in (generator, teacher):
            if isinstance(module, nn.Module):
                lent.enter_context(preserve_state(module))
        judge = as_teacher(teacher, Normalize.of(real.images), accelerator.device, task)
        if judge is None:
            raise ValueError("synthesize needs a teacher, by whose answers samples are chosen; give one.")
        inputs = {
            "config": config.model_dump(mode="json", exclude={"force"}),
            "seed": seed,
            "real": fingerprint(real),
            "generator": fingerprint(generator),
            "teacher": fingerprint(judge),
            "task": str(task),
        }
        synthesis = Synthesis(  # which refuses what does not fit before anything is written
            generator.to(accelerator.device),
            judge,
            task,
            real,
            config,
            directory=directory,
            seed=seed,
            accelerator=accelerator,
            provenance={"inputs": inputs},
            log=log or no_log,
        )
        with StageDirectory(directory, inputs, replace=None).once(accelerator) as results:
            if results is not None:
                synthesis.run()
    return load_store(directory)


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    normalize: Normalize | None = None,
    task: Task | None = None,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """Top-1 (and top-5) accuracy in %, or MAE, RMSE (units of the labels) and R2, on all of `dataset`.

    normalize: of the model's input; None takes what a model trained by gankd carries.
    task: what the outputs mean; None takes what a model trained by gankd carries, else, for classes, what the data
        says.
    Raises ValueError: a network that does not say how its input is normalised, or in which units it answers; a class
    that it does not know (classes are matched by name); outputs that are not finite.
    """
    from accelerate import Accelerator

    from gankd import evaluation
    from gankd.data.inputs import as_image_set
    from gankd.models.inputs import normalization_of, task_known_to
    from gankd.models.state import preserve_state
    from gankd.training.distillation import asked_normalization, asked_task

    accelerator = accelerator or Accelerator()
    dataset = as_image_set(dataset)
    normalize = asked_normalization(normalize) or normalization_of(model)
    if normalize is None:
        raise ValueError(
            "the network does not say how its input is normalised (a state_dict does not hold it): give normalize, of the "
            "images that it was trained on (Normalize.of(images)), or read the network with gankd.load_model."
        )
    task = task or task_known_to(model)
    if task is None and dataset.labels.dtype.is_floating_point:
        raise ValueError(
            "the network does not say in which units it answers (a state_dict does not hold it): give task, of the labels "
            "that it was trained on (gankd.task_of(train)), or read the network with gankd.load_model."
        )
    task, normalize = asked_task(task, dataset), normalize.to(accelerator.device)
    with preserve_state(model):
        return evaluation.network_metrics(
            model.to(accelerator.device), normalize, task, dataset, accelerator=accelerator
        )
