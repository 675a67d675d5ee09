"""Draw and select the synthetic data of an experiment (and what it reads, if that is not done).

accelerate launch scripts/synthesize.py --config configs/digits.yaml --dry-run
"""

from gankd.cli import main

if __name__ == "__main__":
    raise SystemExit(main(__doc__, until="synthesis"))
