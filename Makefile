# Everything from a bare clone: each target makes the environment it needs.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint format clean help

help:
	@echo "make demo       train, fit, run and report on handwritten digits, into runs/demo/"
	@echo "make test       the test suite (under 10 minutes on two cores)"
	@echo "make test-slow  the checks that take longer"
	@echo "make lint       ruff and pyright"
	@echo "make format     ruff's formatter and its safe fixes"
	@echo "make clean      remove the environment and the demonstration's run"

$(VENV)/made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/with-core: $(VENV)/made pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/with-dev: $(VENV)/made pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/with-core

demo: $(VENV)/with-core
	$(VENV)/bin/eenet demo --out runs/demo

test: $(VENV)/with-dev
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/with-dev
	$(VENV)/bin/python -m pytest -m slow

lint: $(VENV)/with-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

format: $(VENV)/with-dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:
	rm -rf $(VENV) runs/demo
