"""Draw and select the synthetic data of an experiment (and what it needs, if that is not done).

    accelerate launch scripts/synthesize.py --config configs/digits.yaml
    accelerate launch scripts/synthesize.py --config configs/digits.yaml --dry-run
    accelerate launch scripts/synthesize.py --config configs/digits.yaml student.epochs=20 name=longer

Stages that are done are skipped, a stage that was cut off is continued.
"""

from gankd.cli import main

if __name__ == "__main__":
    raise SystemExit(main(__doc__, until="synthesis"))
