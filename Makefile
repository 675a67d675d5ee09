PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/installed  ## both bundled experiments, end to end: classification, then regression
	$(BIN)/accelerate launch scripts/gen_then_distill.py --config configs/digits.yaml
	$(BIN)/accelerate launch scripts/gen_then_distill.py --config configs/rotated_digits.yaml

test: $(VENV)/installed  ## lint, formatting, types and the whole test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/python -m pytest

lint: $(VENV)/installed  ## mends what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## the environment and caches; run directories stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
