# Everything a fresh machine needs is Python >= 3.11 and make. `make help` lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-quick test-slow test-slurm bench-launch bench-optimizer bench-report bench-train calibrate docs lint format constraints clean

help:            ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv and install everything, pinned by constraints.txt

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "neumann needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; name another with: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@echo "installing into $(VENV) (several GB of PyTorch the first time, seconds afterwards)"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)   ## a small study on images of clothes, to its report: how many steps do four optimizers need as the batch grows?
	@$(BIN)/neumann study scaling --budget small logger=none # W&B's client takes processor time

test: $(READY)   ## the fast test suite
	@$(BIN)/python -m pytest -m 'not slow and not slurm' -n 2 --dist worksteal

test-quick: $(READY) ## the tests that take moments: a first answer within a minute
	@$(BIN)/python -m pytest -m 'not medium and not slow and not slurm' -n 2 --dist worksteal

test-slow: $(READY) ## the slow tests too
	@$(BIN)/python -m pytest -m 'not slurm' -n 2 --dist worksteal

test-slurm: $(READY) ## a real Slurm of one machine (Debian's slurm-wlm, as root): sweeps, ranks, time limits, lost jobs
	@sh tests/launch/slurm/install.sh
	@$(BIN)/python -m pytest -m slurm -n 0 -rs tests/launch/slurm

bench-launch: $(READY) ## what the launcher and the mirror cost: starts, and a sweep against its training times (5 min)
	@$(BIN)/python benchmarks/launch.py --write

calibrate: $(READY) ## how often studies err where nothing differs, from the pool in experiments/calibration (15 min); RUNS=FOLDER packs runs into it
	@$(BIN)/python -m neumann.studies.calibrate $(RUNS)

bench-report: $(READY) ## what `neumann report` takes for 100 and 2,000 runs: the first time, after one more run, unchanged (8 min)
	@$(BIN)/python benchmarks/report.py --write

bench-train: $(READY) ## what `neumann train` costs beside a hand-written loop, a bare Lightning Trainer and timm's loader (35 min)
	@$(BIN)/python benchmarks/train.py --write

bench-optimizer: $(READY) ## what a step of Neumann costs beside SGD, RMSprop and Adam, on every path (4 min)
	@$(BIN)/python benchmarks/optimizer.py --write

docs: $(READY)   ## the documentation site, built strictly: site/index.html opens from the disk
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: $(READY)   ## ruff (style and format), mypy (types) and import-linter (which room may import which)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: $(READY) ## let ruff put the code in shape
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

constraints: $(READY) ## renew constraints.txt from pyproject.toml (needs a package index)
	@$(BIN)/uv pip compile --quiet --upgrade --universal --no-header --no-annotate --no-emit-index-url --python-version 3.11 --extra dev pyproject.toml --output-file constraints.txt

clean:           ## remove caches and builds, never .venv or runs
	@rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
