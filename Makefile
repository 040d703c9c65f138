# On a fresh machine with Python alone: `make demo` shows the main job, `make test` runs every test.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test check format readme bench bench-quota bench-memory clean

demo: .venv/.installed  ## set up, then audit a simulated fleet and show its inventory
	$(BIN)/auditor demo

test: .venv/.tests-installed  ## set up, then all tests
	$(BIN)/python -m pytest

check: .venv/.tests-installed  ## style, types, import rules, and the README's help texts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/readme_help.py --check README.md

format: .venv/.tests-installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

readme: .venv/.tests-installed  ## write the help texts into the README
	$(BIN)/python docs/readme_help.py README.md

bench: bench-quota bench-memory  ## print the figures that the README quotes

bench-quota: .venv/.tests-installed
	$(BIN)/python benchmarks/quota.py

bench-memory: .venv/.tests-installed
	$(BIN)/python benchmarks/memory.py

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

.venv/.tests-installed: .venv/.installed
	$(PIP) --editable '.[test,check]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
