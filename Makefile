# Two commands for a stranger: `make demo` and `make test`. Each creates .venv and installs on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test check soak gpu-check bench figures clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       a real trace on 128 simulated GPUs, then a small model answers; a few minutes"
	@echo "make test       the test suite (CPU, under 15 minutes)"
	@echo "make check      ruff and mypy"
	@echo "make soak       slow tests: long property runs and full grids"
	@echo "make gpu-check  tests that need a CUDA device"
	@echo "make bench      speed, as JSON in benchmarks/results"
	@echo "make figures    the README's picture and the figures and tables of paper_figs"
	@echo "make clean      remove .venv, caches and out/"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
	  || { echo "batchgen needs Python 3.11 or 3.12; run: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[exec,dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -n auto -q

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: $(STAMP)
	BATCHGEN_SOAK=1 $(BIN)/python -m pytest -q -m slow

gpu-check: $(STAMP)
	$(BIN)/python -m pytest -q -m gpu

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

figures: demo
	cp out/demo/sim/plots/completion.png docs/img/completion.png
	$(BIN)/python paper_figs/headline.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache out
