# `make help` lists the targets. Needs Python 3.11+, make and git; everything else is installed into .venv, pinned by hash.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
IMAGE_OPTIONS = $(if $(TARGET),--target $(TARGET)) $(if $(IMAGE),--image $(IMAGE)) $(if $(CUDA),--cuda $(CUDA)) \
	$(if $(MODELS),--models $(MODELS)) $(if $(PYTHON_IMAGE),--python-image $(PYTHON_IMAGE))
UV := UV_LINK_MODE=copy $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes

.PHONY: help serve test check format train train-all bench peers faults load capacity soak image image-test tools chart chart-e2e lock clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@echo
	@echo '  Variables: RECIPE=clothing (train), ARGS="--port 9000" (serve, train, test, bench, faults, load, capacity, soak), GPU=1 (serve), PYTHON=python3.12'

serve: $(VENV)/.serve$(GPU) ## install the dependencies of serving, and serve the models in models/ on port 8000
	@$(BIN)/python -m service $(ARGS)

test: $(VENV)/.dev ## install all dependencies, and run the tests on all cores [ARGS="-n0 -k batcher"]
	@$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

check: $(VENV)/.dev ## check lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.dev ## rewrite the code in the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

train: $(VENV)/.train ## train a recipe: make train RECIPE=clothing [ARGS="--publish"]
	@$(BIN)/python -m training $(or $(RECIPE),--help) $(ARGS)

train-all: $(VENV)/.train ## train every recipe and publish its model; can be interrupted and run again [ARGS="--mirror DIR"]
	@$(BIN)/python -m training all --publish $(ARGS)

bench: $(VENV)/.dev ## compare the service and the training loop with the bare runtime
	@$(BIN)/python -m benchmarks $(ARGS)

peers: $(VENV)/.dev ## compare the service with other servers, which it installs; needs wrk (over an hour) [ARGS="--resume"]
	@$(BIN)/python -m benchmarks.peers $(ARGS)

faults: $(VENV)/.dev ## inject faults over HTTP and report which guarantees hold (several minutes)
	@$(BIN)/python -m tests.faults $(ARGS)

tools: $(VENV)/.dev ## fetch the programs that some tests need: helm 3 and 4, Prometheus, CRDs (without them they are skipped)
	@$(BIN)/python -m tests.external_tools install

chart: ## check the Helm chart and pack it into dist/ (needs helm; `make tools` fetches it)
	@PATH="$(CURDIR)/.tools/bin:$$PATH"; helm=$$(command -v helm helm4 helm3 | head -n 1) || true; \
	  [ -n "$$helm" ] || { echo 'helm is not installed; `make tools` fetches it.' >&2; exit 1; }; \
	  "$$helm" lint --strict --quiet helm && "$$helm" package helm --destination dist

image: ## build an image with Docker, Podman or Buildah [TARGET=cuda CUDA=12 IMAGE=registry/sevenfold:1 MODELS=baked]
	@$(PYTHON) -m tests.image.build $(IMAGE_OPTIONS) $(ARGS)

image-test: $(VENV)/.dev ## build the image that serves on a CPU, run it as Kubernetes would, and check what it promises
	@$(BIN)/python -m tests.image $(if $(PYTHON_IMAGE),--python-image $(PYTHON_IMAGE)) $(ARGS)

chart-e2e: $(VENV)/.dev ## install the Helm chart on a real Kubernetes API server (about ten minutes) [ARGS="--only default"]
	@$(BIN)/python -m tests.cluster $(ARGS)

load: $(VENV)/.load ## mixed load by Locust, with a report in loadtests/reports [HOST=http://… ARGS="-u 32 -t 5m --shape spike"]
	@$(BIN)/python -m loadtests $(if $(HOST),--host $(HOST)) $(ARGS)

capacity: $(VENV)/.load ## find the highest rate of each model that keeps the objective [ARGS="--url http://… --p99-ms 250"]
	@$(BIN)/python -m loadtests.capacity $(ARGS)

soak: $(VENV)/.dev ## twenty minutes of mixed traffic with faults, swaps and a drain; nothing may be lost or grow
	@$(BIN)/python -m tests.faults.soak $(ARGS)

lock: $(VENV)/.uv ## update the pinned dependencies from pyproject.toml
	@PATH="$(CURDIR)/$(BIN):$$PATH" requirements/compile.sh $(ARGS)

clean: ## remove installed packages and caches; keep data, runs and models
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.uv: requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sevenfold needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Choose another: make PYTHON=python3.12 ...")'
	@echo 'Setting up $(VENV) ...'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

$(VENV)/.serve: requirements/serve.txt $(VENV)/.uv
	@echo 'Installing the dependencies of serving ...'
	@$(UV) -r requirements/serve.txt
	@touch $@

$(VENV)/.load: requirements/load.txt $(VENV)/.serve$(GPU)
	@echo 'Installing the load generators ...'
	@$(UV) -r requirements/load.txt
	@touch $@

# The two builds of ONNX Runtime install into the same folder, so one is removed before the other is installed.
$(VENV)/.serve1: requirements/serve-gpu.txt $(VENV)/.uv
	@echo 'Installing the dependencies of serving on a GPU (about 2.4 GB) ...'
	@$(BIN)/uv pip uninstall --quiet --python $(BIN)/python onnxruntime 2>/dev/null || true
	@$(UV) --reinstall-package onnxruntime-gpu -r requirements/serve-gpu.txt
	@touch $@

$(VENV)/.train: requirements/train.txt $(VENV)/.uv
	@echo 'Installing the dependencies of training (about 5 GB, torch with CUDA) ...'
	@$(UV) -r requirements/train.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.uv
	@echo 'Installing the dependencies of serving, training and the tests (about 5 GB, torch with CUDA) ...'
	@$(UV) -r requirements/dev.txt
	@touch $@
