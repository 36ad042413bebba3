# Everything runs in a virtual environment in the tree; each target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-slow test-gpu check format bench clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)  ## train six small models, keep them in a zoo, let them answer
	$(BIN)/blockzoo demo

# small matrices on a busy machine: a second thread costs more than it gives
test test-slow: export OMP_NUM_THREADS := 1

test: $(READY)  ## the tests, under 15 minutes on 2 cores
	$(BIN)/python -m pytest

test-slow: $(READY)  ## the tests that take longer: 200 kills, 300 damaged bytes, …
	$(BIN)/python -m pytest -m slow

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

check: $(READY)  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python benchmarks/ingest.py

clean:
	rm -rf $(VENV) demo
