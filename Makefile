# make demo | make test: all that is needed is Python 3.11 or newer, make, and a way to PyPI.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test soak lint types docs bench host-check guests clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(STAMP): pyproject.toml examples/accel-unicorn/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "accel needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "this Python cannot make a venv; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --editable examples/accel-unicorn
	@touch $@

demo: $(STAMP) ## run a guest on KVM, or else on Unicorn, then the race: unprotected it faults, protected it does not
	@$(BIN)/accelctl demo

test: $(STAMP) ## run the tests, on JOBS processes; the last lines say how many ran on real KVM
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --ignore tests/docs

soak: $(STAMP) ## run the tests that take minutes
	$(BIN)/python -m pytest -m soak --timeout 1800

lint: $(STAMP) ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP) ## check types
	$(BIN)/mypy

docs: $(STAMP) ## run every example in the documentation and check its links: the rest of the tests
	$(BIN)/python -m pytest tests/docs

bench: $(STAMP) ## measure beside C; needs gcc and KVM
	$(BIN)/python -m benchmarks --check

host-check: $(STAMP) ## repeat on this host what depends on it: all of KVM, the atomic cases, held updates beside C
	$(BIN)/accelctl list
	$(BIN)/python -m pytest -m kvm --timeout 600
	$(BIN)/python -m pytest -m 'kvm and soak' --timeout 1800
	$(BIN)/python -m benchmarks split

guests: ## build the example guests again; needs gcc and binutils
	$(MAKE) -C examples/guests
	cp examples/guests/hello.bin examples/guests/touch.elf examples/workloads
	cp examples/guests/compute.elf examples/guests/stress.elf examples/guests/touch.elf accel/testing/images

clean: ## remove what the targets above made
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
