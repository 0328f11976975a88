# `make quickstart` and `make test` do everything on a fresh machine with Python >= 3.10.
PYTHON ?= python3
VENV := .venv
# A test file runs in one process, because its tests share sweeps. tests/support/order.py sorts the files.
PYTEST := $(VENV)/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

install: $(VENV)/installed

.PHONY: install quickstart test test-all test-gpu bench lint docs clean

quickstart: $(VENV)/installed
	$(VENV)/bin/python run_sweep.py search_spaces/quickstart.yaml

# The suite without the tests that kill processes, fill disks or start clusters.
test: $(VENV)/installed-test
	$(PYTEST) -m "not slow"

test-all: $(VENV)/installed-test
	$(PYTEST)

# One after the other on a machine that does nothing else. The last one fails where a target is missed.
bench: $(VENV)/installed-bench
	for name in sweeps sharing evaluate epoch augmentation linear means growth overhead; do \
	    echo "== $$name"; $(VENV)/bin/python benchmarks/$$name.py || exit 1; \
	done
	$(VENV)/bin/python benchmarks/document.py
	$(VENV)/bin/python benchmarks/check.py

# On a machine with a GPU. All other tests compute on the CPU.
test-gpu: $(VENV)/installed-test
	RAYSWEEP_TEST_GPU=1 $(PYTEST) tests/test_gpu.py tests/test_trial.py

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy --strict raysweep run_sweep.py

docs: $(VENV)/installed
	$(VENV)/bin/python docs/search_space_reference.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("raysweep needs Python 3.10 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --editable '.[test]'
	touch $@

$(VENV)/installed-bench: $(VENV)/installed
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --editable '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
