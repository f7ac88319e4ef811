# Every target sets up what it needs; a fresh machine has Python >= 3.11 with pip, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GPU_VENV := .gpu-venv
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt
PACKAGES := guidance samplers pipelines bridges evaluation configs scripts
OUT := out/demo

.PHONY: help demo test quick oldest lint types bench gpu-check tables figures world evidence docs clean
help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /	/' | expand -t 12

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch  # first and by itself: the pinned one, not the newest with several GB of CUDA packages
	$(PIP) --editable ".[tune]"
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) --editable ".[dev]"
	@mkdir -p $(VENV)/src && ln -sfn "$(CURDIR)" $(VENV)/src/guidestack
	@touch $@

demo: $(VENV)/.installed ## make a labelled picture with the bundled model, at several guidance scales
	$(BIN)/guidestack generate \
	  "cat face, noto style, blue background" "hamburger, flat style, white background" \
	  "rocket, twemoji style, black background" "rose, gradient style, yellow background" \
	  "penguin, noto style, cyan background" "red heart, flat style, pink background" \
	  --guidance "stack()" --guidance "cfg(2)" --guidance "cfg(4)" --guidance "cfg(8)" \
	  --guidance "cfg(8) | rescale(0.7)" \
	  --steps 20 --seed 1 --batch 3 --out $(OUT) --grid $(OUT)/grid.png

test: lint types $(VENV)/.dev ## everything that must hold: lint, types, all tests
	$(BIN)/python -m pytest -n 2 -q

# All of the algebra, and of the rest what breaks first. Two schedulers take seconds to be made and are left out.
FAMILIES := StableDiffusionXLPipeline StableDiffusion3Pipeline FluxPipeline PixArtSigmaPipeline WanPipeline
QUICK := tests/guidance tests/samplers tests/pipelines/test_parity.py \
  $(foreach name,$(FAMILIES),"tests/pipelines/test_families.py::test_cfg_is_the_pipelines_own[$(name)]") \
  $(foreach name,$(FAMILIES),"tests/pipelines/test_families.py::test_the_pipeline_is_left_as_it_was_found[$(name)]") \
  tests/bridges/test_denoiser.py::test_cfg_is_its_formula \
  tests/evaluation/test_runner.py::test_a_stopped_run_goes_on \
  tests/scripts/test_cli.py::test_rules_and_explain tests/scripts/test_cli.py::test_help_is_there_for_everything \
  tests/evaluation/metrics/test_registry.py tests/test_docs.py tests/test_readme.py \
  tests/test_package.py::test_the_public_names_are_the_contracts \
  tests/test_package.py::test_every_file_with_a_rule_or_a_metric_is_imported_by_its_package
quick: $(VENV)/.dev ## the part to run while working
	$(BIN)/python -m pytest -n 2 -q -m "not slow" -k "not KDPM2 and not DPMSolverSDE" $(QUICK)

# A job of CI of its own, and by hand before a release: the oldest torch comes with several GB of CUDA packages.
oldest: ## the tests of the algebra and of the pipelines with the oldest versions that are said to do
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip --disable-pip-version-check install -qq --constraint oldest.txt --editable ".[dev]"
	.venv-oldest/bin/python -m pytest -q -W default tests/guidance tests/samplers tests/pipelines tests/scripts/test_cli.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV)/src && ../bin/lint-imports --no-cache "$(CURDIR)/pyproject.toml"

# The package is this folder, whatever its name: a link named guidestack is what the type checker looks at.
types: $(VENV)/.dev
	cd $(VENV)/src && ../bin/python -m mypy --config-file "$(CURDIR)/pyproject.toml" \
	  -m guidestack $(foreach part,$(PACKAGES),-p guidestack.$(part))

bench: $(VENV)/.dev ## time and memory of guide() against the stock pipeline, and of a step's arithmetic
	$(BIN)/guidestack bench
	$(BIN)/guidestack bench arithmetic

# Which build of torch is right depends on the GPU's driver: the one that PYTHON has is used, and the pin left out.
$(GPU_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --system-site-packages $(GPU_VENV)
	grep -v '^torch==' constraints.txt > $(GPU_VENV)/constraints.txt
	$(GPU_VENV)/bin/python -m pip --disable-pip-version-check install -qq --constraint $(GPU_VENV)/constraints.txt \
	  --editable .
	@touch $@

gpu-check: $(GPU_VENV)/.installed ## does everything hold on this machine's GPU, and what does guidance cost there?
	$(GPU_VENV)/bin/python -m guidestack.scripts.gpu_check

tables: $(VENV)/.dev ## the tables of rules, metrics, compositions and families in docs/, from the code
	$(BIN)/python -m guidestack.scripts.dev.tables

figures: $(VENV)/.dev ## the pictures of the documentation, and the tables of docs/methods.md
	$(BIN)/python -m guidestack.scripts.dev.figures methods
	$(BIN)/python -m guidestack.scripts.dev.figures views
	$(BIN)/python -m guidestack.scripts.dev.figures worlds

world: $(VENV)/.dev ## the papers' claims where every law is known: docs/exact-world.md, in about ten minutes
	$(BIN)/python -m guidestack.scripts.dev.worlds

evidence: $(VENV)/.dev ## anew what was made from the bundled weights: card, presets, figures, notebooks, claims; resumable, hours
	$(BIN)/python -m guidestack.scripts.dev.evidence

docs: $(VENV)/.docs ## the documentation site, in out/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open out/site/index.html"

$(VENV)/.docs: $(VENV)/.dev
	$(PIP) --editable ".[docs]"
	@touch $@

clean: ## remove what the targets above made
	rm -rf $(VENV) $(GPU_VENV) .wheel-venv .venv-oldest out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
