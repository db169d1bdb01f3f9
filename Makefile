# Each target sets up .venv by itself. Nothing is needed but Python 3.11 to 3.13 and make.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup run up down status test check bench soak lock

setup: $(STAMP)

# uv is pinned with hashes in requirements.lock like everything else: pip installs it, it installs the rest.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Python 3.11 to 3.13 is needed: make PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "setting up .venv (a minute or two on a fresh machine)"
	@$(BIN)/python -c 'import re; print(re.search(r"(?ms)^uv==.*?(?=^\S|\Z)", open("requirements.lock").read()).group())' \
		> .venv/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/uv.lock
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip sync --quiet --require-hashes requirements.lock
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)

run: setup
	@$(BIN)/touchstone demo

# Prefect, MLflow, gateway, worker and the emulated vendor, until Ctrl-C (docs/deploy.md).
up: setup
	@$(BIN)/touchstone up

down: setup
	@$(BIN)/touchstone down

status: setup
	@$(BIN)/touchstone status

# A file's tests stay together: they share what is dear to start.
test: setup
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# What has no main is shared by the others; peers are started by them; the soak takes most of an hour.
bench: setup
	@for file in $$(grep -l __main__ benchmarks/*.py | grep -v -e peer_ -e _soak -e _kills); do \
		echo "== $$file"; $(BIN)/python $$file || exit 1; done

soak: setup
	$(BIN)/python -m benchmarks.reindex_soak
	$(BIN)/python -m benchmarks.promotion_kills
	$(BIN)/python -m benchmarks.gateway_kills

# After a change of the dependencies in pyproject.toml. overrides.txt keeps torch out (facts beside the pin).
lock: setup
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --override overrides.txt --quiet --output-file requirements.lock
