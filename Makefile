# Every target sets up all it needs on a fresh Debian 12: see scripts/setup.
PYTHON := .venv/bin/python

.PHONY: demo test test-deep lint docs mutants lock setup

# A guest that goes online, and its shell for you. ARGS=--batch ends instead.
demo: setup
	$(PYTHON) examples/demo.py $(ARGS)

# The whole suite but what takes hours.
test: lint
	$(PYTHON) -m pytest --hypothesis-profile=gate -m "not deep"

# The rest: many more examples for every property, and the long tests.
test-deep: lint
	$(PYTHON) -m pytest --hypothesis-profile=deep

lint: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

# docs/tcp-states.md and docs/counters.md, from the tables that the code runs on.
docs: setup
	$(PYTHON) -m tools.tcp_states
	$(PYTHON) -m tools.counters

# Faults planted in nat/tcp/, to see whether the tests notice: an hour or two, and it goes on where
# it was stopped. ARGS="receiver rtt" tries these modules only.
mutants: setup
	$(PYTHON) -m tools.mutants $(ARGS)

# New versions of everything, for a commit of its own.
lock: setup
	$(PYTHON) -m pip -q install pip-tools
	.venv/bin/pip-compile --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe \
		--no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--extra dev --build-deps-for editable -o requirements-dev.lock pyproject.toml

setup:
	@scripts/setup
