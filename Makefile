# Every target sets itself up: python 3.11+, git and make are all that a fresh machine needs.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
# The first interpreter on PATH that runs and is new enough.
FIND_PYTHON = for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done

.PHONY: demo test check clean

demo: $(VENV)/.core
	@$(PY) -m synapse_p2p.apps.demo

test: check
	PYTHONDEVMODE=1 $(PY) -m pytest -n 2

check: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyrefly check
	$(VENV)/bin/lint-imports

$(VENV)/.core: pyproject.toml
	@python=$$($(FIND_PYTHON)); \
	test -n "$$python" || { echo "Python 3.11 or newer was not found on PATH: install it, then run make again."; exit 1; }; \
	test -x $(PY) || "$$python" -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .ruff_cache .import_linter_cache
