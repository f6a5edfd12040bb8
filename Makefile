# Two commands for a stranger: `make demo` and `make test`. Each creates .venv and installs on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

COMPILED := build/compiled
SOURCES := pyproject.toml constraints.txt hatch_build.py $(shell find -L batchgen -name '*.py')

.PHONY: help demo test check soak compiled test-compiled gpu-wheels gpu-check bench figures notebooks clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       a real trace on 128 simulated GPUs, then a small model answers; a few minutes"
	@echo "make test       the test suite (CPU, 15 to 35 minutes on 2 cores)"
	@echo "make check      ruff and mypy"
	@echo "make soak       slow tests: long property runs and full grids"
	@echo "make compiled   the scheduler and the simulator as C, in build/compiled; needs a C compiler, 2 minutes"
	@echo "make test-compiled  the test suite on that"
	@echo "make gpu-wheels packages that a GPU machine lacks, into .gpu-site, which travels with the checkout"
	@echo "make gpu-check  tests, ceilings, kernels and throughput on a CUDA machine, with its own Python; ARGS=--dry-run"
	@echo "make bench      speed, as JSON in benchmarks/results"
	@echo "make figures    the README's picture and the figures and tables of paper_figs"
	@echo "make notebooks  execute the notebooks and keep what they show; a few minutes"
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

# A wheel, unpacked: what one edits is never compiled, and what is compiled never lies in the checkout.
$(COMPILED)/.made: $(STAMP) $(SOURCES)
	@command -v $${CC:-cc} > /dev/null || { echo "this needs a C compiler (gcc or clang);" \
	  "plain Python is measured by: $(BIN)/python benchmarks/run.py --python" >&2; exit 2; }
	rm -rf $(COMPILED) build/wheel
	BATCHGEN_MYPYC=1 $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w build/wheel .
	$(BIN)/python -m pip install --quiet --no-deps --target $(COMPILED) build/wheel/*.whl
	@touch $@

compiled: $(COMPILED)/.made

test-compiled: compiled
	PYTHONPATH=$(CURDIR)/$(COMPILED) $(BIN)/pytest -n auto -q

# A GPU machine may be offline, with torch and Triton in its own Python: it gets no environment, only what is missing
# there. Wheels of Python 3.12, since that is what such machines run.
WHEELS := simpy msgspec
gpu-wheels:
	rm -rf .gpu-wheels .gpu-site
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	  -c constraints.txt -d .gpu-wheels $(WHEELS)
	for wheel in .gpu-wheels/*.whl; do $(PYTHON) -m zipfile -e "$$wheel" .gpu-site || exit 1; done

gpu-check:
	$(PYTHON) benchmarks/gpu/check.py $(ARGS)

bench: compiled
	$(BIN)/python benchmarks/run.py

figures: demo
	cp out/demo/sim/plots/completion.png docs/img/completion.png
	$(BIN)/python paper_figs/headline.py

notebooks: $(STAMP)
	$(BIN)/python notebooks/run.py

clean:
	rm -rf $(VENV) .gpu-wheels .gpu-site build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache out
