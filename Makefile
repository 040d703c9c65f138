# On a fresh machine with Python alone: `make demo` shows the main job, `make test` runs every test.
PYTHON ?= python3
FUZZ_SECONDS ?= 60
KILLS ?= 200
BIN := .venv/bin
BENCHES := $(addprefix bench-,speed sealing memory quota listing contention sharing accounts gate outages pacing drift report \
	sampling precision incremental rolling planning)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test check format help-texts fuzz chaos bench clean $(BENCHES)

demo: .venv/.installed  ## set up, then audit a simulated fleet and show its inventory
	$(BIN)/auditor demo

test: .venv/.tests-installed  ## set up, then all tests, as many side by side as there are cores, four at most
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

check: .venv/.tests-installed  ## style, types, import rules, and the documents' help texts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/help_texts.py --check README.md docs/commands.md

format: .venv/.tests-installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

help-texts: .venv/.tests-installed  ## write what --help prints into the documents
	$(BIN)/python docs/help_texts.py README.md docs/commands.md

fuzz: .venv/.fuzz-installed  ## every reader against bytes that follow its branches, FUZZ_SECONDS each
	$(BIN)/python -m tests.fuzz.long $(FUZZ_SECONDS)

chaos: .venv/.tests-installed  ## audits killed KILLS times at random moments, and cut at every byte; prints figures
	AUDITOR_KILLS=$(KILLS) $(BIN)/python -m pytest -s tests/chaos

bench: $(BENCHES)  ## print the figures that the README quotes

$(BENCHES): bench-%: .venv/.tests-installed
	$(BIN)/python benchmarks/$*.py

bench-speed: .bench/.installed

.bench/.installed: benchmarks/requirements.txt
	$(PYTHON) -m venv .bench
	.bench/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	touch $@

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable '.[report]'
	touch $@

.venv/.tests-installed: .venv/.installed
	$(PIP) --editable '.[test,check]'
	touch $@

.venv/.fuzz-installed: .venv/.tests-installed
	$(PIP) --editable '.[fuzz]'
	touch $@

clean:
	rm -rf .venv .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .fuzz .import_linter_cache
