# Two commands do everything on a fresh machine:  make demo  and  make test.
# They make a virtual environment in .venv; PYTHON chooses the interpreter (3.11 or newer).
.DEFAULT_GOAL := help
.PHONY: help env demo test test-fast lint format bench clean
SHELL := /bin/bash

PYTHON ?= python3
VENV ?= .venv
# Tests run in so many processes of one thread each.
WORKERS ?= 2
BIN := $(VENV)/bin
# glibc hands every large block back to the system after use, and torch asks for it again at the next operation; where page faults
# are dear (virtual machines) that costs more than the arithmetic. Keep the blocks.
export MALLOC_MMAP_THRESHOLD_ := 2147483648
export MALLOC_TRIM_THRESHOLD_ := 8589934592
PIP := $(BIN)/pip --disable-pip-version-check

help:
	@echo "make demo       environment, then the free-energy surface of alanine dipeptide (about a minute)"
	@echo "make test       environment, linters, type checks, all tests"
	@echo "make test-fast  the tests that take seconds"
	@echo "make lint       ruff and mypy"
	@echo "make bench      the benchmarks of docs/benchmarks.md"

# torch goes first and pinned: a range would let pip choose a build with gigabytes of GPU libraries.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "torch==2.13.0"
	$(PIP) install --quiet --constraint constraints.txt "setuptools>=77" wheel
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable ".[molecular,diffusion,dev]" \
		--config-settings editable_mode=strict
	@touch $@

# A strict editable install lists files one by one, so new modules need the short second command.
env: $(VENV)/.installed
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable . --config-settings editable_mode=strict 2>&1 \
		| { grep -v -e "Editable installation" -e '^ *!!' -e '\*\*\*' -e "Please be careful" -e "name as your package" \
		-e "with strategy, WheelFile" -e "BuildBackendWarning" -e '^ *$$' || true; }

demo: env
	$(BIN)/feynkac run data:configs/alanine_dipeptide.yaml

test: env lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-fast: env
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env
	$(BIN)/python tests/benchmarks/bench_energies.py
	$(BIN)/python tests/benchmarks/bench_resampling.py
	$(BIN)/python tests/benchmarks/bench_steering.py
	$(BIN)/python tests/benchmarks/bench_corrected.py
	$(BIN)/python tests/benchmarks/bench_correctors_overhead.py
	$(BIN)/python tests/benchmarks/bench_guidance.py
	$(BIN)/python tests/benchmarks/bench_clusters.py
	$(BIN)/python tests/benchmarks/bench_metadynamics.py speed
	$(BIN)/python tests/benchmarks/bench_metadynamics.py hills
	$(BIN)/python tests/benchmarks/bench_metadynamics.py accuracy
	$(BIN)/python tests/benchmarks/bench_known_pmfs.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
