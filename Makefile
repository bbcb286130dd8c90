# Every target sets itself up: python 3.11+, git and make are all that a fresh machine needs.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
# The first interpreter on PATH that runs and is new enough.
FIND_PYTHON = for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done

# The first interpreter of just this version, on PATH or under pyenv.
find_version = for p in python$(1) "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$(1).*/bin/python; do \
	"$$p" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(1)")' 2>/dev/null && { echo "$$p"; break; }; done
VERSIONS := 3.11 3.12 3.13
TEST_VERSIONS := $(addprefix test-,$(VERSIONS))

.PHONY: demo test gates types test-all $(TEST_VERSIONS) interpreters check compat bench clean

demo: $(VENV)/.core
	@$(PY) -m synapse_p2p.apps.demo

# Development mode with the usual memory allocator: its own looks for what C code overwrites, a fifth of a simulation.
DEVMODE := PYTHONDEVMODE=1 PYTHONMALLOC=pymalloc

# tests/typing begins, for it takes longest; pytest 9 would drop a folder that lies in another, and not look into it.
test: check
	$(DEVMODE) $(PY) -m pytest -n 2 --keep-duplicates tests/typing tests

# The proofs that take minutes, which `make test` leaves out; what is finished is kept in build/gates and not played again.
# First what is judged by time and wants the machine for itself.
gates: $(VENV)/.dev
	$(PY) -m pytest -n 0 -m gates tests/network
	$(PY) -m pytest -n 2 -m gates --ignore tests/network
	$(PY) -m simulations.gates --page docs/explanation/simulation_results.md
	$(PY) -m simulations.agent_gates

# What users write against the wheel as they install it, alone; `make test` has it beside the rest.
types: $(VENV)/.dev
	$(PY) -m pytest tests/typing

# The tests on every Python version that is supported; one that is not installed is an error.
test-all: interpreters
	@for version in $(VERSIONS); do $(MAKE) --no-print-directory test-$$version || exit 1; done

interpreters:
	@missing=; \
	$(foreach version,$(VERSIONS),test -n "$$($(call find_version,$(version)))" || missing="$$missing $(version)";) \
	test -z "$$missing" || { echo "Not found on PATH or under pyenv: Python$$missing. Install it, then run make again."; exit 1; }

$(TEST_VERSIONS): test-%: .venv-%/.dev
	$(DEVMODE) .venv-$*/bin/python -m pytest -n 2

# Cross calls with earlier releases as published, which it installs.
compat: $(VENV)/.dev
	$(DEVMODE) $(PY) -m pytest tests/compat

bench: $(VENV)/.core
	$(PY) -m benchmarks.commands
	$(PY) -m benchmarks.routing
	$(PY) -m benchmarks.rpc
	$(PY) -m benchmarks.dht
	$(PY) -m benchmarks.simulator --swarms

check: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyrefly check
	$(VENV)/bin/lint-imports

$(VENV)/.core: pyproject.toml
	@python=$$($(FIND_PYTHON)); \
	test -n "$$python" || { echo "Python 3.11 or newer was not found on PATH: install it, then run make again."; exit 1; }; \
	test -x $(PY) || "$$python" -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[cli]'
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

.venv-%/.dev: pyproject.toml
	@python=$$($(call find_version,$*)); \
	test -n "$$python" || { echo "Python $* was not found on PATH or under pyenv: install it, then run make again."; exit 1; }; \
	test -x .venv-$*/bin/python || "$$python" -m venv .venv-$*
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-* build dist .pytest_cache .hypothesis .ruff_cache .import_linter_cache
