# Everything a person or a CI job runs. Needs Python 3.11 or later, make and git; all else goes to .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PEERS := .venv-bench
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help install demo test test-all lint format docs bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      fit a model on the New York flights of 2013, killing a worker on the way"
	@echo "make test      run the tests            make test-all  with the slow ones"
	@echo "make lint      ruff and mypy            make format    let ruff rewrite"
	@echo "make docs      build docs/_build/html   make bench     measure, beside other programs"
	@echo "make install   only create $(VENV)        make clean     remove what make has made"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dask_dml needs Python 3.11 or later, this is " + sys.version.split()[0] + "; name another: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=26'  # the one that comes with Python may fail to resolve

# Two stamps: the demo does not wait for the tools of developers.
$(VENV)/.stamp-demo: pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --editable '.[examples]'
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.stamp-demo

# The programs that the benchmark compares with, and nothing of ours. Spark needs Java 17.
$(PEERS)/.stamp: pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade 'pip>=26'
	$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet --group bench
	@touch $@

install: $(VENV)/.stamp-dev

demo: $(VENV)/.stamp-demo
	$(BIN)/dask dml demo

test: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.stamp-dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

bench: $(VENV)/.stamp-dev $(PEERS)/.stamp
	$(BIN)/python tests/benchmarks/run.py --peers $(PEERS)/bin/python $(BENCH)

clean:
	rm -rf $(VENV) $(PEERS) build dist *.egg-info docs/_build docs/generated .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
