# Two commands do everything on a fresh machine with Python 3.11 or newer:
#   make study   installs into .venv, then runs a small real study and writes its report
#   make test    installs, then runs every test that can run here
# Variables: PYTHON (the interpreter), TORCH and PIP_TORCH_ARGS (which torch, from where), STUDY, TEST_ARGS.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
ARMSCALE := PYTHONSAFEPATH=1 $(VENV)/bin/armscale
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')

# A torch that already works with this machine's GPU is kept; else the index's default build is installed. On a machine
# without a GPU, PIP_TORCH_ARGS can point pip to CPU builds, which spares gigabytes of CUDA packages.
ifeq ($(GPU),0)
TORCH ?= torch==2.13.0
TRITON ?= triton==3.9.0
VENV_ARGS ?=
else
TORCH ?= torch
TRITON ?=
VENV_ARGS ?= $(shell $(PYTHON) -c 'import torch; print("--system-site-packages" * torch.cuda.is_available())' 2>/dev/null)
endif
PIP_TORCH_ARGS ?=

EXTRAS := cpu,slurm,deepspeed,tensorboard,notebooks,test
SOURCE ?= fashion-mnist
SHARDS ?= shards/fashion-mnist
STUDY ?= quickstart
TEST_ARGS ?=

.PHONY: install study test test-full lint clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt Makefile
	test -x $(PY) || $(PYTHON) -m venv $(VENV_ARGS) $(VENV)
	$(PIP) install --upgrade 'setuptools>=77' wheel ninja
	$(PY) -c 'import torch' 2>/dev/null || $(PIP) install $(PIP_TORCH_ARGS) '$(TORCH)'
	$(if $(TRITON),$(PIP) install '$(TRITON)')
	$(PY) -c 'import deepspeed' 2>/dev/null || $(PIP) install --no-build-isolation -c constraints.txt deepspeed
	$(PIP) install --no-build-isolation --config-settings editable_mode=compat -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

study: install
	$(ARMSCALE) data pack $(SOURCE) $(SHARDS)
	status=0; $(ARMSCALE) study launch $(STUDY) --cluster local || status=$$?; \
	folder=runs/$$(basename $(STUDY) .yaml); \
	$(ARMSCALE) report $$folder --output $$folder/report && echo "report: $$folder/report/index.html"; \
	exit $$status

# One torch thread a test process: thousands of tiny parallel regions spin on a busy machine. Live Slurm tests share one
# cluster (python -m slurm.cluster up), so they run one after the other; without a cluster they skip and say so.
PYTEST := OMP_NUM_THREADS=1 PYTHONSAFEPATH=1 PYTHONPATH=. $(PY) -m pytest --durations=10 $(TEST_ARGS)

test: install lint
	$(PYTEST) -n 2 --dist worksteal -m 'not slurm'
	$(PYTEST) -m slurm

test-full: install
	ARMSCALE_FULL=1 $(PYTEST) -n 2 --dist worksteal -m 'not slurm'
	ARMSCALE_FULL=1 $(PYTEST) -m slurm

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
