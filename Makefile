# Two commands do everything on a fresh machine; each makes its own virtual environment when needed.
#   make demo   compile a real network, show the table, write the report
#   make test   run the tests
# `make check` is `make test` with lint and types, as continuous integration runs it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The stamp names what it was made from, so a changed pin or package map sets the environment up again.
STAMP := $(VENV)/.graphopt-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export OMP_NUM_THREADS ?= 1

.PHONY: demo test check lint types env clean

env: $(STAMP)

$(STAMP):
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	# torch is installed alone and by its exact version first: a looser request can take a build with
	# several gigabytes of GPU libraries.
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[torch,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

check: test lint types

clean:
	rm -rf $(VENV) build dist out *.egg-info
