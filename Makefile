# Every target works alone on a machine with only Python (3.10 or newer) and make:
# the first one called creates .venv and installs the project into it.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
JOBS ?= 2

.PHONY: help demo test bench lint clean

help:
	@echo "make demo    quantize the bundled model and print accuracy, size, latency and what stayed float"
	@echo "make test    run the tests"
	@echo "make bench   measure side by side with onnxruntime.quantization"
	@echo "make lint    ruff, formatting, types"
	@echo "make clean   remove .venv and everything else that was generated"

demo: .venv/.installed
	$(BIN)/onnxq demo

test: .venv/.installed
	$(BIN)/python -m pytest -q -n $(JOBS)

bench: .venv/.installed-bench
	$(BIN)/python benchmarks/run.py

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are newer than pyproject.toml once what it asks for is installed.
.venv/.installed: pyproject.toml | .venv/bin/python
	@echo "installing onnxq and its tools into .venv"
	@$(PIP) install -e '.[dev]'
	@touch $@

.venv/.installed-bench: .venv/.installed
	@$(PIP) install -e '.[dev,bench]'
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "onnxq needs Python 3.10 or newer: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv .venv
