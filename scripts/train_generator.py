"""Train the conditional generator of an experiment (and what scores it, if that is not done).

accelerate launch scripts/train_generator.py --config configs/digits.yaml --dry-run
"""

from gankd.cli import main

if __name__ == "__main__":
    raise SystemExit(main(__doc__, until="generator"))
