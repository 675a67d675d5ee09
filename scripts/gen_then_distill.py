"""Generate, select, distil, report: the whole experiment with one command.

accelerate launch scripts/gen_then_distill.py --config configs/digits.yaml --dry-run
"""

from gankd.cli import main

if __name__ == "__main__":
    raise SystemExit(main(__doc__, until="report"))
