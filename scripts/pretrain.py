"""Train the backbones of an experiment without labels (and what they need, if that is not done).

    accelerate launch scripts/pretrain.py --config configs/digits_squeeze_and_span.yaml
    accelerate launch scripts/pretrain.py --config configs/digits_squeeze_and_span.yaml --dry-run
    accelerate launch scripts/pretrain.py --config configs/digits_squeeze_and_span.yaml representation.steps=200

Stages that are done are skipped, a stage that was cut off is continued.
"""

from gankd.cli import main

if __name__ == "__main__":
    raise SystemExit(main(__doc__, until="representation", default_config="configs/digits_squeeze_and_span.yaml"))
