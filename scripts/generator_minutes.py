"""What a generator is worth after so many minutes of one core: little students learn from its images alone.

python scripts/generator_minutes.py --config configs/cifar10_flow.yaml --minutes 20 --every 10
python scripts/generator_minutes.py --config configs/cifar10.yaml --minutes 20 --every 10 data.root=data/cifar10_lossless.npz

Trains the experiment's generator without a run directory and stops the clock (the process's CPU time) while it is judged: by
`generator.judge.student`, with several seeds, on real validation images. For comparing settings at equal cost; the networks
that a configuration trains to help the generator are trained first, outside of the clock.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the experiment")
    parser.add_argument("--minutes", type=float, default=20, help="CPU minutes of training (default: 20)")
    parser.add_argument("--every", type=float, default=10, help="CPU minutes between two looks (default: 10)")
    parser.add_argument("--check", type=int, default=25, help="steps between two looks at the clock (default: 25)")
    parser.add_argument("--seeds", type=int, default=2, help="students a look (default: 2)")
    parser.add_argument(
        "--output", type=Path, help="a JSON line a look is appended here; the last generator goes beside it"
    )
    parser.add_argument("overrides", nargs="*", help="settings by key: generator.network=unet")
    args = parser.parse_intermixed_args()  # overrides on both sides of an option
    try:
        measure(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


class TimeIsUp(Exception):
    """The minutes are over."""


def measure(args: argparse.Namespace) -> None:
    from accelerate import Accelerator

    import generators
    from gankd.experiment.config import load_config
    from gankd.pipeline import Run
    from gankd.pipeline.helpers import help_of
    from gankd.pipeline.judge import judge_of

    run = Run(load_config(args.config, args.overrides), Accelerator())
    data, judge, given = run.part(run.config.generator.train_on), judge_of(run, with_features=False), help_of(run)
    config = run.config.generator
    config = config.replace(score_every=args.check, collapse_ratio=None, sample_every=None)
    started, judging, looks = time.process_time(), 0.0, 0

    def look(generator) -> float:
        """Note what students learn when another `--every` minutes have passed; the training needs no score."""
        nonlocal judging, looks
        begun = time.process_time()
        minutes = (begun - started - judging) / 60
        if minutes >= (looks + 1) * args.every:
            fakes = judge.draw(generator)
            found = [dataclasses.replace(judge, seed=seed).learnt_from(fakes) for seed in range(args.seeds)]
            looks, judging = looks + 1, judging + time.process_time() - begun
            line = {"minutes": minutes, run.task.metric: found, "looking": (time.process_time() - begun) / 60}
            print(json.dumps(line), flush=True)
            if args.output:
                with args.output.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                generator.save_pretrained(args.output.with_suffix(""))
        if minutes >= args.minutes:
            raise TimeIsUp
        return 0.0

    labels = {"num_classes": run.num_classes, "label_range": run.label_range}
    with contextlib.suppress(TimeIsUp):
        generators.train(data.images, data.labels, **labels, config=config, seed=run.config.seed, score=look, **given)


if __name__ == "__main__":
    raise SystemExit(main())
