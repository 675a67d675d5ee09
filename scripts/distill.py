"""Train the students of an experiment (and what they read, if that is not done).

accelerate launch scripts/distill.py --config configs/digits.yaml --dry-run
"""

from gankd.cli import main

if __name__ == "__main__":
    raise SystemExit(main(__doc__, until="students"))
