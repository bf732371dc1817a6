# Every target makes .venv first where it is missing or older than pyproject.toml or constraints.txt.
#   ARGS=...     more arguments for train.py or pytest
#   PYTHON=...   the Python (3.11 or newer) that .venv is made with
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help train test test-fast test-all lint format bench soak clean

READY := .venv/.ready
PYTEST := .venv/bin/python -m pytest
FAST := tests/unit tests/configs tests/architecture
# One more than cores: some tests wait for what they have killed or stopped.
SIDE_BY_SIDE := -n $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1))) --maxprocesses 8 --dist worksteal
# How fast the loss of a rank is noticed is timed: that has the machine to itself.
TIMED := tests/faults/test_lost_ranks.py
BENCHMARKS := loader prepare overhead startup first_step load_peak zero pipeline traffic vocabulary compile checkpoint default_run
# More threads than cores per rank slow small CPU jobs down many times over.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help: ## what you are reading
	@echo 'make TARGET [ARGS="..."]'
	awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

train: $(READY) ## the main job: 2 ranks, fsdp, embedded text (ARGS="train.steps=50 run.dir=runs/demo")
	.venv/bin/torchrun --standalone --nproc-per-node 2 train.py +strategy=fsdp $(ARGS)

test: $(READY) ## the tests, one representative per matrix, under 15 minutes (ARGS="-k order")
ifeq ($(strip $(ARGS)),)
	@status=0
	$(PYTEST) $(SIDE_BY_SIDE) $(addprefix --ignore=,$(TIMED)) tests || status=$$?
	$(PYTEST) $(TIMED) || status=$$?
	exit $$status
else
	$(PYTEST) $(ARGS)
endif

test-fast: $(READY) ## unit, config and architecture tests, under 2 minutes
	$(PYTEST) $(SIDE_BY_SIDE) $(FAST) $(ARGS)

test-all: $(READY) ## the whole matrices
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s g++ libaio-dev >/dev/null 2>&1; then
	    echo '[setup] for offload to a disk: apt-get install g++ libaio-dev'
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq g++ libaio-dev >/dev/null || true
	fi
	$(PYTEST) -m "not soak" $(ARGS)

soak: $(READY) ## hundreds of random kills
	$(PYTEST) -m soak $(ARGS)

bench: $(READY) ## every benchmark that needs no GPU; results under benchmarks/results
	@for benchmark in $(BENCHMARKS); do
	    echo "== $$benchmark"
	    .venv/bin/python "benchmarks/$$benchmark.py"
	done
	.venv/bin/python benchmarks/table.py

lint: $(READY) ## ruff check, ruff format --check, mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: $(READY) ## let ruff format and mend what it safely can
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean: ## remove .venv, caches and build outputs; never runs/
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@find_python() {
	    for candidate in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do
	        if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
	            echo "$$candidate"
	            return
	        fi
	    done
	}
	if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
	    python=$$(find_python)
	    if [ -z "$$python" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	        echo '[setup] no Python >= 3.11 with the venv module here: apt-get install python3-venv'
	        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null || true
	        python=$$(find_python)
	    fi
	    if [ -z "$$python" ]; then
	        echo '[setup] found no Python >= 3.11 with the venv module. Install one (Debian, Ubuntu: sudo apt-get install python3-venv)' >&2
	        echo '        or name yours: make PYTHON=/path/to/python3' >&2
	        exit 1
	    fi
	    echo "[setup] .venv with $$("$$python" --version)"
	    "$$python" -m venv --clear .venv
	fi
	torch=$$(grep '^torch==' constraints.txt)
	echo "[setup] $$torch (the large download)"
	.venv/bin/python -m pip install --quiet "$$torch"
	echo '[setup] isotrain and everything else it needs'
	.venv/bin/python -m pip install --quiet --editable '.[all]' --constraint constraints.txt
	touch $@
	echo '[setup] done'
