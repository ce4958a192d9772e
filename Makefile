# Every target sets up what it needs, from Python 3.11+ alone. The first run downloads; later runs touch no network.
# `args` goes to the tool: make test args="tests/test_packaging.py -x"
# Three test files run at once, for most tests wait for processes: args="-n 0" runs one after another.

args ?=
.DEFAULT_GOAL := help
.PHONY: help demo up test coverage test-containers chaos check format bench lock audit clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

demo: .venv/.installed ## run one execution with a tool call, its events and tokens shown live
	@.venv/bin/python -m sandbox demo $(args)

up: .venv/.installed ## the whole stack left running: shim on 8080, Flower on 5555; Ctrl-C stops it
	@.venv/bin/python -m sandbox up $(args)

test: .venv/.installed-dev ## the whole test suite
	.venv/bin/python -m pytest -n 3 --dist loadfile $(args)

coverage: .venv/.installed-dev ## the same, with the coverage gate: every process measured, and twice the time
	.venv/bin/python -m pytest -n 3 --dist loadfile --cov $(args)

chaos: .venv/.installed-dev ## the proof of the promise: the whole service under continuous faults, then its ledgers
	@.venv/bin/python -m chaos $(args)

# For an engine other than Docker: make test-containers BUILD="podman build". BUILD_ARGS go to each build.
BUILD ?= docker build
PYTHON_IMAGE ?= python:3.13-slim
REDIS_IMAGE ?= redis:8-alpine
image = localhost/agent-exec:test
test-containers: .venv/.installed-dev ## workers and Redis in containers, killed and restarted; needs a container engine
	@.venv/bin/python -m tests.containers.engine $(firstword $(BUILD))
	$(BUILD) $(BUILD_ARGS) --build-arg PYTHON_IMAGE=$(PYTHON_IMAGE) --tag $(image) .
	$(BUILD) $(BUILD_ARGS) --build-arg IMAGE=$(image) --tag $(image)-next --file tests/containers/next.Dockerfile tests/containers
	$(BUILD) $(BUILD_ARGS) --build-arg REDIS_IMAGE=$(REDIS_IMAGE) --tag $(image)-redis --file tests/containers/redis.Dockerfile tests/containers
	.venv/bin/python -m pytest tests/containers --timeout 300 $(args)

check: .venv/.installed-dev ## format, lint, types, import layers
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: .venv/.installed-dev ## format the code, and mend what the linter can
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: .venv/.installed-dev ## the benchmarks, printing ratios
	@.venv/bin/python -m benchmarks $(args)

# Pins stay unless asked: make lock args=--upgrade. Index variables are unset because uv would write them down.
compile = env -u UV_INDEX -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL -u UV_DEFAULT_INDEX -u UV_FIND_LINKS \
	UV_CUSTOM_COMPILE_COMMAND="make lock" .venv/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-config $(args)
lock: .venv/bin/uv ## resolve the dependencies of pyproject.toml into the two lock files
	@$(compile) --extra sandbox --group build --output-file requirements.lock pyproject.toml
	@$(compile) --group pyproject.toml:dev --constraint requirements.lock --output-file requirements-dev.lock

audit: .venv/bin/pip-audit ## known holes in the pinned dependencies; asks for them over the network
	.venv/bin/pip-audit --disable-pip --require-hashes -r requirements.lock -r requirements-dev.lock

clean: ## remove the environment, caches and build output; data of the private server stays
	rm -rf .venv dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --no-compile: half of the modules are never imported, and compiling them is a quarter of the wait.
pip_install = .venv/bin/pip install -qq --disable-pip-version-check --no-compile
.venv/.installed: requirements.lock pyproject.toml | .venv/bin/pip
	@echo "Installing the service into .venv (once, about half a minute) …"
	@$(pip_install) --require-hashes --no-deps -r requirements.lock
	@$(pip_install) --no-build-isolation --no-deps --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.lock
	@echo "Installing the development tools into .venv (once, about half a minute) …"
	@$(pip_install) --require-hashes --no-deps -r requirements-dev.lock
	@touch $@

.venv/bin/pip-audit: | .venv/bin/pip
	@$(pip_install) pip-audit

.venv/bin/pip:
	@for python in $(or $(PYTHON),python3.13 python3.12 python3.14 python3.11 python3); do \
		"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		exec "$$python" -m venv .venv; \
	done; \
	echo "No Python 3.11 or newer with the modules venv and ensurepip was found. Install one" >&2; \
	echo "(Debian, Ubuntu: python3 and python3-venv; Fedora: python3; macOS: brew install python)," >&2; \
	echo "or name one: make PYTHON=/path/to/python3" >&2; \
	exit 1

.venv/bin/uv: | .venv/bin/pip
	@$(pip_install) uv
