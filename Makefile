# `make` alone lists the targets. Needs Python >= 3.11 (with venv and pip) and make; all else is installed into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2
RUNS   := outputs
DEMO   := outputs/demo
CKPT   := $(DEMO)/vq_diffusion/demo/checkpoints/last.ckpt
comma  := ,

# OpenMP's default busy wait makes everything several times slower when another program holds a core.
GOMP_SPINCOUNT ?= 20000
export GOMP_SPINCOUNT

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules --no-print-directory

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# Two stamps, because the demo needs none of the development tools. They lie in .venv, so deleting it deletes them.
define install
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit( \
	  "Trilemma needs Python 3.11 or newer and $(PYTHON) is %d.%d: name another, as in make demo PYTHON=python3.12" % v[:2])'
	@$(PYTHON) -m venv $(VENV) || { echo "Python cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
endef

$(VENV)/.demo-installed: pyproject.toml constraints.txt
	$(call install,demo)
	@touch $@

$(VENV)/.dev-installed: pyproject.toml constraints.txt
	$(call install,demo$(comma)dev)
	@touch $(VENV)/.demo-installed $@

.PHONY: setup
setup: $(VENV)/.dev-installed ## Create .venv and install everything, development tools included

.PHONY: demo
demo: $(VENV)/.demo-installed ## Train a VQ-VAE and VQ-Diffusion on 5,000 digits, sample, evaluate; interrupted, it goes on
	@$(BIN)/python train.py experiment=demo/vqvae run.id=demo
	@$(BIN)/python train.py experiment=demo/vq_diffusion run.id=demo
	@$(BIN)/python sample.py ckpt=$(CKPT) num_images=100 guidance.scale=2 output_dir=$(DEMO)/samples
	@$(BIN)/python evaluate.py ckpt=$(CKPT) num_images=1000 guidance.scale=2 ledger.max_seconds=5 likelihood.num_images=100 \
	  output_dir=$(DEMO)/evaluation
	@printf '\nPictures: $(DEMO)/samples/grid.png\nNumbers:  $(DEMO)/evaluation\n'

.PHONY: test
test: check ## Lint, types and the fast tests; and, as root where SLURM is installed, those on a cluster of their own
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadfile -m "not slow and not slurm"
	@if command -v slurmctld >/dev/null && [ "$$(id -u)" -eq 0 ]; then $(BIN)/pytest tests/slurm -m "slurm and not slow"; \
	  else echo "Left out: tests/slurm, which need SLURM's own programs and root (CONTRIBUTING.md)"; fi

.PHONY: test-slow
test-slow: $(VENV)/.dev-installed ## The tests that take minutes
	@$(BIN)/pytest -m "slow and not slurm"

.PHONY: test-experiments
test-experiments: $(VENV)/.dev-installed ## Two batches of every experiment; then one process draws from all checkpoints (minutes)
	@OMP_NUM_THREADS=$(JOBS) $(BIN)/pytest tests/contract/test_every_experiment.py --durations=0 --durations-min=5

.PHONY: test-slurm
test-slurm: $(VENV)/.dev-installed ## The tests on a real SLURM of two nodes, which they start themselves (slurm-wlm, munge, root)
	@$(BIN)/pytest tests/slurm --ignore tests/slurm/test_interruptions.py

.PHONY: test-slurm-full
test-slurm-full: $(VENV)/.dev-installed ## 20 interruptions of trainings on that cluster, a quarter of an hour: docs/slurm_interruptions.md
	@TABLE=docs/slurm_interruptions.md $(BIN)/pytest tests/slurm/test_interruptions.py -s

.PHONY: check
check: $(VENV)/.dev-installed ## Lint, types, spelling and the order of imports; no tests
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --check
	@$(BIN)/mypy
	@$(BIN)/codespell
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/shellcheck -x slurm/*.sh slurm/*.sbatch .ci/run

.PHONY: format
format: $(VENV)/.dev-installed ## Mend what the linter can and format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: sync
sync: $(VENV)/.demo-installed ## Upload the offline wandb runs in outputs/, or in RUNS=DIR
	@$(BIN)/python -m trilemma.loggers.sync $(RUNS)

.PHONY: bench
bench: $(VENV)/.dev-installed ## Speed against the floor and against peers
	@$(BIN)/python benchmarks/discrete.py
	@$(BIN)/python benchmarks/gaussian.py
	@$(BIN)/python benchmarks/pixelcnn.py
	@$(BIN)/python benchmarks/ar_transformer.py

.PHONY: clean
clean: ## Delete caches and .venv; outputs/ stays
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -exec rm -rf {} +
