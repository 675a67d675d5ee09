"""Train the backbones of an experiment without labels (and what they read, if that is not done).

accelerate launch scripts/pretrain.py --config configs/digits_squeeze_and_span.yaml --dry-run
"""

from gankd.cli import main

if __name__ == "__main__":
    raise SystemExit(main(__doc__, until="representation", default_config="configs/digits_squeeze_and_span.yaml"))
