# Everything a developer types. `make` alone explains itself.

PYTHON_ENV := .venv/bin/python
# Workers for the tests: one for each core, at most four. Builds and boards have children of their own.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ "$$n" -gt 4 ] && n=4; echo "$$n")
PYTEST = $(PYTHON_ENV) -m pytest
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long lint format clean bench bench-setup
.SUFFIXES:

help: ## This list
	@echo 'Aegis builds, flashes and watches ESP32-family firmware on machines you own.'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'
	@echo
	@echo 'New here? make demo. It needs Linux, and as root on Debian or Ubuntu it installs what is'
	@echo 'missing; as anyone else it says what that is. Everything else stays in this folder.'
	@echo
	@echo 'More:'
	@echo '  make demo KEEP=1                      leave control, agent and boards up, and say what to try'
	@echo '  make test ARGS="-k upload"            the tests whose name has a word in it'
	@echo '  make test WORKERS=0 ARGS="-x --pdb"   in one process, with a debugger'
	@echo '  make setup PYTHON=/usr/bin/python3.12 with another Python (3.11 or newer)'

setup: ## Make .venv with everything that the programs and the tests need
	@PYTHON='$(PYTHON)' scripts/setup.sh test

demo: ## Build, flash and watch firmware on virtual boards, all on this machine
	@PYTHON='$(PYTHON)' scripts/setup.sh demo
	@$(PYTHON_ENV) scripts/demo.py $(if $(filter-out 0 no,$(KEEP)),--keep)

test: setup ## The tests (a few minutes)
	@$(PYTEST) -m 'not long' -n $(WORKERS) --dist loadfile $(ARGS)

test-long: setup ## The tests that need longer
	@$(PYTEST) -m long -n $(WORKERS) --dist loadfile $(ARGS)

lint: ## Format, ruff, mypy, the rules of who imports whom, the shell scripts
	@PYTHON='$(PYTHON)' scripts/setup.sh lint
	@scripts/lint.sh

format: ## Put the code into its format
	@PYTHON='$(PYTHON)' scripts/setup.sh lint
	@$(PYTHON_ENV) -m ruff check --fix --exit-zero --quiet .
	@$(PYTHON_ENV) -m ruff format .

bench: ## One benchmark: make bench NAME=transport
	@scripts/bench.sh '$(NAME)' $(ARGS)

bench-setup: ## Install what the benchmarks compare with
	@PYTHON='$(PYTHON)' scripts/setup.sh bench

clean: ## Stop a demo that was kept, and remove all that was made here
	@scripts/clean.sh
