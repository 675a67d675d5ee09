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

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from benchmarks.games import measure_generator
from benchmarks.methods import kinds, measure_distiller, noise, num_images_of
from benchmarks.timing import Measurement, machine

from gankd.experiment.config import apply_override
from gankd.methods import METHODS
from gankd.models import ModelConfig
from generators.checkpoints import replace_whole
from generators.config import GeneratorConfig
from generators.networks import NETWORKS


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
    distillers.add_argument("--teacher", metavar="NAME", help=f"network, e.g. resnet32x4 ({small})")
    distillers.add_argument("--student", metavar="NAME", help=f"network, e.g. resnet8x4 ({small})")
    enough = "default: 10,000, or 50,000 for methods with as many negatives"
    distillers.add_argument("--num-samples", type=int, metavar="N", help=f"images ({enough})")
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
    print(f"batches of {args.batch_size}, {args.size} pixels, {args.repeats} rounds: median [quartiles] of ratios")
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
        for kind in kinds(name):
            num_samples = args.num_samples or num_images_of(name)
            yield measure_distiller(name, noise(kind, args.size, num_samples), **options)


if __name__ == "__main__":
    raise SystemExit(main())
