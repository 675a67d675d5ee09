"""Train the teacher of an experiment (and the generator that its arms read, if that is not done).

accelerate launch scripts/train_teacher.py --config configs/digits.yaml --dry-run
"""

from gankd.cli import main

if __name__ == "__main__":
    raise SystemExit(main(__doc__, until="teacher"))
