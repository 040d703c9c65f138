# These need only Python: `make demo` shows a complete audit, `make test` runs all tests.
PYTHON ?= python3
FUZZ_SECONDS ?= 60
KILLS ?= 200
BIN := .venv/bin
BENCHES := $(addprefix bench-,speed sealing memory quota discovery contention sharing accounts rate_limiter outages rate_control drift report \
	sampling precision incremental rolling planning)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test check format help-texts schemas fuzz chaos bench clean $(BENCHES)

demo: .venv/.installed  ## set up, then audit a simulated fleet and show its inventory
	$(BIN)/auditor demo

test: .venv/.tests-installed  ## set up, then run all tests, one process per core, at most four
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

check: .venv/.tests-installed  ## check style, types, import layers, help texts and schemas
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/help_texts.py --check README.md docs/commands.md
	$(BIN)/python docs/schemas.py --check

format: .venv/.tests-installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

help-texts: .venv/.tests-installed  ## write what --help prints into the documents
	$(BIN)/python docs/help_texts.py README.md docs/commands.md

schemas: .venv/.tests-installed  ## write the JSON Schemas that the types describe
	$(BIN)/python docs/schemas.py

fuzz: .venv/.fuzz-installed  ## fuzz every reader, guided by coverage, FUZZ_SECONDS each
	$(BIN)/python -m tests.fuzz.long $(FUZZ_SECONDS)

chaos: .venv/.tests-installed  ## kill audits KILLS times at random moments, cut files at every byte, and print figures
	AUDITOR_KILLS=$(KILLS) $(BIN)/python -m pytest -s tests/chaos

bench: $(BENCHES)  ## print the figures that the documents quote

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
