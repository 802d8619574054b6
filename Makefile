# `make demo` shows what the project does, and `make test` whether it still holds.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# URL of a package index with torch for CPUs alone; PyTorch's installation page names it.
TORCH_INDEX ?=
WATCHED = sh infra/watched.sh $(VENV)
PIP = $(WATCHED) $(BIN)/pip install -q -c constraints.txt
TORCH = $$(grep -E '^(torch|torchvision)==' constraints.txt)

# Tests, two files at a time: many wait for servers.
TESTS = $(BIN)/python -m pytest -q --durations=10 -n 2 --dist loadfile

.PHONY: help demo test test-slow lint env train stack containers bench audit clean

help:  ## this list
	@grep -hE "^[a-z-]+:.*##" $(MAKEFILE_LIST) | sed -E "s/:.*## /\t/" | expand -t 12

demo: env  ## the embedded study: scores, figures, report
	$(BIN)/ldmprobe run tabletop

test: env lint  ## style, types, and every test that is not marked slow
	$(TESTS) -m "not slow"
	@echo "not tried: the containers on a Docker engine: make containers does that in half an hour"

test-slow: env  ## the tests marked slow: whole studies, stacks, stops, training (half an hour)
	$(TESTS) -m slow

lint: env  ## style, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

env: $(VENV)/ready  ## one virtual environment for all of it

$(VENV)/ready: pyproject.toml constraints.txt
	@echo "Installing about 200 packages into $(VENV): $(if $(TORCH_INDEX),4 GB with torch for CPUs,8 GB on Linux; with torch for CPUs alone 4 GB (TORCH_INDEX in docs/operations.md))."
	@echo "This takes 3 to 6 minutes on a fast connection."
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "PYTHON: Python 3.11 or later is needed ($(PYTHON)). Fix: make env PYTHON=python3.11" >&2; exit 1; }
	# pip comes last: without it, an earlier start was interrupted before the environment was made.
	test -x $(BIN)/pip || $(WATCHED) $(PYTHON) -m venv $(VENV)
	# torch and torchvision by their exact versions: everything else then finds them in place.
	# From an index of their own they come alone, and what they need comes from pip's usual index.
	$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url "$(TORCH_INDEX)" $(TORCH))
	$(PIP) $(TORCH)
	$(PIP) -e '.[dev]'
	# TRACER's architecture; its declared dependencies would break Python (see docs/models.md).
	$(PIP) --no-deps carvekit
	touch $@

train: env  ## make the embedded model from nothing (hours on two cores, minutes on a GPU)
	# glibc gives large tensors back to the kernel and takes them anew at every step, which costs a
	# seventh of the time on CPUs: these two settings keep them.
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8000000000 \
		$(BIN)/python -m ldmprobe_core.tabletop.train

stack: env  ## Postgres, Prefect with its UI, S3, Dask, a worker, on loopback; Ctrl-C stops all
	$(BIN)/python -m infra.stack

containers: env  ## the same in containers on a real engine: built, used, broken, removed (half an hour)
	$(BIN)/python -m infra.containers

bench: env  ## ratios against plain diffusers, scikit-learn, the published way, raw storage (15 min)
	$(BIN)/python -m benchmarks.suite

audit: env  ## known faults in the pinned versions (asks a database over the network)
	test -x $(VENV)/audit/bin/pip-audit || $(BIN)/python -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install -q pip-audit
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
