# Needs Python 3.11 or newer, make and a Python package index; everything else is installed into $(VENV).
#
# On Linux the default index serves torch with its CUDA libraries, several GB. On a machine without a GPU, add an index
# that has the CPU build:
#   make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
QUIET := $(if $(MAKE_TERMOUT),,--quiet)
ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
VERSION := import sys; print("%d.%d.%d" % sys.version_info[:3])

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: setup quick model serve-demo test lint bench help clean

setup: $(INSTALLED) ## Make .venv, install with pinned versions, fetch and verify the embedded model and data
	@$(BIN)/unimoer data fetch

quick: setup ## Run the quick kill gate (minutes on 2 cores): the verdict, and the path of its report
	@$(BIN)/unimoer run kill-gate --quick $(ARGS)

model: setup ## Train a model for both stages from the embedded data (an hour on 2 cores), into runs/model
	@$(BIN)/unimoer train pretrain --output runs/pretrain
	@test -d runs/pretrain-merged || $(BIN)/unimoer export runs/pretrain --format merged --task embedding --output runs/pretrain-merged
	@$(BIN)/unimoer train pretrained --set 'arms=[joint_single]' --output runs/both
	@test -d runs/model || $(BIN)/unimoer export runs/both --format portable --onto runs/pretrain --output runs/model

serve-demo: setup ## Index an embedded domain and serve it with the released model: a page, embeddings, reranking, search
	@test -f runs/demo-index/index.json || $(BIN)/unimoer index runs/demo-index embedded:cwe
	@$(BIN)/unimoer serve --index runs/demo-index $(ARGS)

test: setup ## Run the whole test suite; narrow it with ARGS="tests/unit -k NAME"
	@$(BIN)/python -m pytest -n auto --maxprocesses 8 $(ARGS)

lint: $(INSTALLED) ## Check style, formatting, types and the import layers
	@$(BIN)/ruff check --no-cache .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

bench: setup ## Measure speed and memory against PEFT, sentence-transformers, a loop over experts and two models
	@$(BIN)/unimoer bench train
	@$(BIN)/unimoer bench train --arms
	@$(BIN)/unimoer bench encode
	@$(BIN)/unimoer bench encode --arms
	@$(BIN)/unimoer bench latency
	@$(BIN)/unimoer bench memory
	@$(BIN)/unimoer bench memory --serving smollm2-135m-search
	@$(BIN)/unimoer bench rerank
	@$(BIN)/unimoer bench rerank --domain attack
	@$(BIN)/unimoer bench serve

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

clean: ## Remove caches and build output; .venv and your runs stay
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: no '$(PYTHON)' here; name a Python 3.11 or newer: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c '$(ENOUGH)' || { echo "make: Python 3.11 or newer is needed, '$(PYTHON)' is $$($(PYTHON) -c '$(VERSION)'); name another: make setup PYTHON=python3.11" >&2; exit 1; }
	@{ $(BIN)/python -c '$(ENOUGH)' && $(BIN)/python -m pip --version; } >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install $(QUIET) --disable-pip-version-check --only-binary=:all: -c constraints.txt $(PIP_ARGS) -e ".[dev]"
	@touch $@
