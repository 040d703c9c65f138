# These need Python with venv, git and a package index: `make demo` shows a complete audit, `make test` runs the tests.
PYTHON ?= python3
FUZZ_SECONDS ?= 60
MUTATIONS ?= 10000
SUITE ?= forky
DEBIAN ?= http://deb.debian.org/debian
KILLS ?= 200
SOAK_MINUTES ?= 15
BIN := .venv/bin
BENCHES := $(addprefix bench-,credentials tracing cluster bulk publishing speed sealing memory quota discovery contention sharing accounts rate_limiter outages rate_control drift report \
	sampling precision incremental rolling planning)
PIP := python -m pip --disable-pip-version-check install --quiet
LOCKED := $(PIP) --require-hashes --no-deps --requirement
COMPILE := .tools/bin/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header --no-emit-package auditor
LICENCES := MIT;Apache;BSD;ISC;Python Software Foundation;PSF;Mozilla Public License 2.0;MPL-2.0;Unlicense;0BSD;CC0

TEST_PROCESSES ?= $(shell n=$$(( $$(nproc 2>/dev/null || echo 2) + 2 )); echo $$(( n < 6 ? n : 6 )))

.PHONY: demo dist pex install-test image-test debian-python release-check units test test-all check format help-texts schemas tables references docs dashboard pictures fuzz mutations chaos soak bench lock sbom licences vulnerabilities clean $(BENCHES)

demo: .venv/.installed  ## set up, then audit a simulated fleet and show its inventory
	$(BIN)/auditor demo

PYTEST = $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal

test test-all: export GLIBC_TUNABLES = glibc.malloc.tcache_count=2000  # small queries take a tenth less time
test test-all: export PYTHONDONTWRITEBYTECODE =  # compiling the tests takes each process ten seconds, so what is compiled is kept
test: .venv/.tests-installed  ## set up, then run all tests but slow ones; more processes than cores, since a third of the time is waiting
	$(PYTEST) -m "not slow"

test-all: .venv/.tests-installed  ## run all tests
	$(PYTEST)

check: .venv/.tests-installed  ## check style, types, import layers, help texts and schemas
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/help_texts.py --check docs/commands.md
	$(BIN)/python docs/schemas.py --check
	$(BIN)/python docs/tables.py --check
	$(BIN)/python release/units.py --check
	$(BIN)/python docs/log_events.py --check
	$(BIN)/python docs/references.py --check

format: .venv/.tests-installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

help-texts: .venv/.tests-installed  ## write what --help prints into the documents
	$(BIN)/python docs/help_texts.py docs/commands.md

schemas: .venv/.tests-installed  ## write the JSON Schemas that the types describe
	$(BIN)/python docs/schemas.py

units: .venv/.installed  ## write the systemd units of deploy/
	$(BIN)/python release/units.py

tables: .venv/.tests-installed  ## write the columns of published tables and of Parquet files, the schema of PostgreSQL, and the events of the log
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/log_events.py

dashboard: .grafana/.installed  ## write the dashboard of deploy/grafana
	.grafana/bin/python deploy/grafana/dashboard.py > deploy/grafana/auditor.json.new
	mv deploy/grafana/auditor.json.new deploy/grafana/auditor.json

references: .venv/.tests-installed  ## write the pages of settings, rules, JSON, error codes, exit codes and the Python API
	$(BIN)/python docs/references.py

docs: .docs/.installed  ## build the site of the documents in site/pages, strictly; open site/pages/index.html
	.docs/bin/python docs/site_builder.py site

pictures: .venv/.tests-installed  ## write the pictures of the documents, from the demonstration's data in headless Chromium
	$(BIN)/python docs/pictures.py
	$(BIN)/python -m tests.deploy.picture docs/dashboard.png

fuzz: .venv/.fuzz-installed  ## fuzz every reader, guided by coverage, FUZZ_SECONDS each
	$(BIN)/python -m tests.fuzz.long $(FUZZ_SECONDS)

mutations: .venv/.tests-installed  ## run commands on MUTATIONS mutated run folders, and on a tenth of settings, rules, fleets, responses and quotas
	$(BIN)/python -m tests.mutations.long $(MUTATIONS)

chaos: .venv/.tests-installed  ## kill audits and workers of shards KILLS times at random moments, cut files at every byte, and print figures
	AUDITOR_KILLS=$(KILLS) AUDITOR_ROUNDS=$(KILLS) $(BIN)/python -m pytest -s -o faulthandler_timeout=0 tests/chaos

soak: .venv/.tests-installed  ## audit for SOAK_MINUTES, and print the slopes of memory, descriptors and tasks
	$(BIN)/python benchmarks/soak.py $(SOAK_MINUTES)

bench: $(BENCHES)  ## print the figures that the documents quote

$(BENCHES): bench-%: .venv/.tests-installed
	$(BIN)/python benchmarks/$*.py

bench-speed: .bench/.installed

lock: .tools/.installed  ## write the hashes of everything that is installed, after a change of pyproject.toml or constraints.txt
	$(COMPILE) pyproject.toml requirements/build.in --extra report --extra redis --constraint constraints.txt --output-file requirements/audit.lock
	$(COMPILE) pyproject.toml requirements/build.in --all-extras --constraint constraints.txt --no-emit-package atheris \
		--output-file requirements/test.lock
	$(COMPILE) pyproject.toml requirements/build.in $(addprefix --extra ,credentials dask dlt notify otel postgresql publish redis report simulator) \
		--constraint constraints.txt --constraint requirements/test.lock --output-file requirements/extras.lock
	$(COMPILE) benchmarks/requirements.txt --output-file requirements/bench.lock
	$(COMPILE) requirements/tools.in --output-file requirements/tools.lock
	$(COMPILE) requirements/s3.in --output-file requirements/s3.lock
	$(COMPILE) requirements/dbt.in --output-file requirements/dbt.lock
	$(COMPILE) requirements/docs.in --output-file requirements/docs.lock
	$(COMPILE) requirements/kubernetes.in --output-file requirements/kubernetes.lock
	$(COMPILE) requirements/grafana.in --output-file requirements/grafana.lock

# The same commit gives the same bytes: the times in the archives are that of the commit.
dist: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct)
dist: .venv/.installed sbom  ## build wheel and source distribution, with manual page, completions, SBOM and provenance, in dist/
	rm -rf dist build/share
	$(BIN)/python release/shell_files.py
	$(BIN)/python -m hatchling build -d dist
	cp sbom.cdx.json dist/
	$(BIN)/python release/provenance.py dist

pex: build/wheelhouse/.filled build/audit.lock dist  ## build dist/auditor-pythonX.Y.pex: one file for servers that have Python alone
	printf '%s --hash=sha256:%s\n' "$$(realpath dist/*.whl)" "$$(cat dist/*.whl | sha256sum | cut -d ' ' -f 1)" > build/pex.txt
	for python in $$($(PYTHON) release/pythons.py); do \
		.tools/bin/pex --python $$python --no-pypi --pre-resolved-dists build/wheelhouse --pre-resolved-dist dist/*.whl --no-transitive \
			--console-script auditor --requirement build/audit.lock --requirement build/pex.txt \
			--output-file dist/auditor-$$(basename $$python).pex || exit 1; done
	$(BIN)/python release/provenance.py dist

# Packages that only a patch version of Python needs, such as Debian's 3.11.2, are for all of them.
build/%.lock: requirements/%.lock
	mkdir -p build
	sed "s/ ; python_full_version < '[0-9.]*' \\\\$$/ \\\\/" $< > $@

build/wheelhouse/.filled: build/extras.lock $(wildcard build/debian-*/.ready)  ## download what an audit and its extras need, with hashes
	rm -rf build/wheelhouse
	for python in $$($(PYTHON) release/pythons.py); do \
		$$python -m pip --disable-pip-version-check wheel --quiet --require-hashes --no-deps --requirement $< \
			--wheel-dir build/wheelhouse || exit 1; done
	touch $@

install-test: dist build/wheelhouse/.filled  ## install wheel and source offline, with and without each extra, and run them
	$(BIN)/python release/install_test.py dist build/wheelhouse

debian-python: build/debian-$(SUITE)/.ready  ## unpack the Python of SUITE of Debian, which install-test then finds; needs root and debootstrap

# It runs with the C library of its suite, wherever the folder is; to start it, nothing of this machine is replaced.
build/debian-%/.ready: .tools/.installed
	rm -rf $(@D)
	debootstrap --variant=minbase --include=python3-pip,python3-venv $* $(@D) $(DEBIAN) /usr/share/debootstrap/scripts/sid
	root=$(CURDIR)/$(@D) && python=$$(realpath $(@D)/usr/bin/python3) && .tools/bin/patchelf --force-rpath \
		--set-interpreter $$root$$(.tools/bin/patchelf --print-interpreter $$python) --set-rpath $$(dirname $$root/usr/lib/*/libc.so.6) $$python
	sed --in-place "s|/usr/share/python-wheels|$(CURDIR)/$(@D)&|" $(@D)/usr/lib/python3.*/_sysconfigdata_*.py
	touch $@

image-test: dist build/wheelhouse/.filled  ## build the image of deploy/container on a base of debootstrap, and run it read-only
	$(BIN)/python release/container_test.py

release-check: .venv/.tests-installed .tools/.installed  ## walk the checklist of a release
	$(BIN)/python release/release_check.py

sbom: .tools/.installed .venv/.installed  ## write what an audit consists of as CycloneDX to sbom.cdx.json
	mkdir -p build
	.tools/bin/cyclonedx-py requirements requirements/audit.lock --pyproject pyproject.toml --output-reproducible --output-file build/parts.cdx.json
	$(BIN)/python release/sbom.py build/parts.cdx.json sbom.cdx.json

licences: .tools/.installed .venv/.installed  ## check that every library of an audit has a licence that permits its use
	.tools/bin/pip-licenses --python $(BIN)/python --partial-match --allow-only '$(LICENCES)' --order license \
		--packages $$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/\1/p' requirements/audit.lock)

vulnerabilities: .tools/.installed  ## check every library of an audit against the vulnerabilities that PyPI publishes
	.tools/bin/pip-audit --requirement requirements/audit.lock --require-hashes --disable-pip --strict

.tools/.installed: requirements/tools.lock
	$(PYTHON) -m venv .tools
	.tools/bin/$(LOCKED) $<
	touch $@

.bench/.installed: requirements/bench.lock
	$(PYTHON) -m venv .bench
	.bench/bin/$(LOCKED) $<
	touch $@

.kubernetes/.installed: requirements/kubernetes.lock  ## set up the models of Kubernetes, which the test of the manifests needs
	$(PYTHON) -m venv .kubernetes
	.kubernetes/bin/$(LOCKED) $<
	touch $@

.grafana/.installed: requirements/grafana.lock  ## set up the types of Grafana, which generate the dashboard
	$(PYTHON) -m venv .grafana
	.grafana/bin/$(LOCKED) $<
	touch $@

.s3/.installed: requirements/s3.lock  ## set up a simulated S3, which the tests of object storages need
	$(PYTHON) -m venv .s3
	.s3/bin/$(LOCKED) $<
	touch $@

.docs/.installed: requirements/docs.lock  ## set up Zensical, which builds the site of the documents
	$(PYTHON) -m venv .docs
	.docs/bin/$(LOCKED) $<
	touch $@

.dbt/.installed: requirements/dbt.lock  ## set up dbt, which the tests of deploy/dbt need
	$(PYTHON) -m venv .dbt
	.dbt/bin/$(LOCKED) $<
	touch $@

.venv/.installed: pyproject.toml requirements/audit.lock
	$(PYTHON) -m venv .venv
	$(BIN)/$(LOCKED) requirements/audit.lock
	$(BIN)/$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

.venv/.tests-installed: .venv/.installed requirements/test.lock
	$(BIN)/$(LOCKED) requirements/test.lock
	touch $@

.venv/.fuzz-installed: .venv/.tests-installed
	$(BIN)/$(PIP) --constraint constraints.txt 'atheris>=3'
	touch $@

clean:
	rm -rf build dist .venv .bench .dbt .docs .grafana .kubernetes .s3 .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .fuzz .import_linter_cache site
