"""Train the conditional generator of an experiment.

    accelerate launch scripts/train_generator.py --config configs/digits.yaml
    accelerate launch scripts/train_generator.py --config configs/digits.yaml --dry-run
    accelerate launch scripts/train_generator.py --config configs/digits.yaml student.epochs=20 name=longer

Stages that are done are skipped, a stage that was cut off is continued.
"""

from gankd.cli import main

if __name__ == "__main__":
    raise SystemExit(main(__doc__, until="generator"))
