# `make` or `make help` lists the targets. PYTHON chooses the interpreter that makes the
# environment, VENV its folder.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-faults lint format ablations bench bench-gpu

help:  ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The stamp is newer than the two files that say what is installed, or setup runs again.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,demo,study]'
	@touch $@

setup: $(VENV)/.installed  ## Make .venv and install everything into it

demo: setup  ## Train a small DiT4SR here, restore held-out photos with it, show the table
	$(BIN)/python -m dit4sr.studies.demo $(ARGS)

# Several processes, a file of tests in each; one maths thread a process.
test: setup  ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

test-slow: setup  ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

test-faults: setup  ## Kill runs, fill disks, lose ranks (many minutes)
	$(BIN)/python -m pytest -m faults tests/faults $(ARGS)

lint: setup  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## Mend style where that can be done automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ablations: setup  ## Train and compare the six models on the embedded photos
	$(BIN)/python experiments/ablation/run.py $(ARGS)

# Each theme's table, printed; ARGS=--out writes it to benchmarks/results too.
bench: setup  ## Measure speed on this machine's CPU (minutes)
	$(BIN)/python benchmarks/startup.py $(ARGS)
	$(BIN)/python benchmarks/degradation.py --images 12 $(ARGS)
	$(BIN)/python benchmarks/loading.py $(ARGS)
	$(BIN)/python benchmarks/sampling.py $(ARGS)
	$(BIN)/python benchmarks/training.py $(ARGS)
	$(BIN)/python benchmarks/training.py --profile $(ARGS)
	$(BIN)/python benchmarks/memory.py --full $(ARGS)

# Eight minutes at most: rows that there is no time for are printed as left out; one script's failure ends no other.
# Where the packages of 8-bit rows are absent and cannot be had, these rows say so and the others are measured.
bench-gpu: setup  ## Measure speed on a GPU: full-size networks with random weights
	-$(BIN)/python -c 'import importlib.util as i, sys; sys.exit(not (i.find_spec("torchao") and i.find_spec("bitsandbytes")))' || \
	$(BIN)/python -m pip install --retries 1 --constraint constraints.txt --editable '.[quantise]'
	failed=0; \
	$(BIN)/python benchmarks/sampling.py --device cuda $(ARGS) || failed=1; \
	$(BIN)/python benchmarks/training.py --device cuda --trace outputs/training_trace.json.gz $(ARGS) || failed=1; \
	$(BIN)/python benchmarks/degradation.py --device cuda $(ARGS) || failed=1; \
	$(BIN)/python benchmarks/memory.py --full --device cuda $(ARGS) || failed=1; \
	exit $$failed
