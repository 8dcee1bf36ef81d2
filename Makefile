# make install [ACCELERATOR=cuda|tpu] [PYTHON=python3.12]   into .venv, with the tested versions
# make demo                                                 a residual network learns digits
# make claims                                               what the papers say, put to the test
# make test | test-long | lint | clean

# The newest Python that starts and can make an environment: a name may be there that only prints an
# error.
PYTHON ?= $(or $(shell for name in python3.14 python3.13 python3.12 python3.11 python3; do \
    $$name -c 'import ensurepip, venv' 2>/dev/null && echo $$name && break; done),python3)
VENV ?= .venv
ACCELERATOR ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed-$(or $(ACCELERATOR),cpu)

.PHONY: install demo claims test test-long lint clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: jaxhist needs Python 3.11 or newer; choose one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints.txt --editable '.[play,test$(if $(ACCELERATOR),$(comma)$(ACCELERATOR))]'
	$(BIN)/python -c 'import platform; from importlib.metadata import version; print("Python", platform.python_version(), "with jax", version("jax"))'
	touch $@

comma := ,

demo: install
	$(BIN)/python -m experiments.resnet train small
	@echo
	@echo 'Look at runs/resnet-small/curves.png, then try:'
	@echo '  . $(BIN)/activate'
	@echo '  python -m experiments.resnet train small --shortcut none --depth 56 --run.workdir runs/plain'
	@echo '  python -m experiments.resnet evaluate runs/resnet-small'
	@echo '  python -m experiments.resnet describe cifar10'

claims: install
	for name in resnet identity_mappings alexnet gan googlenet adam dqn simclr regression seq2seq attention transformer bert gpt; do $(BIN)/python -m experiments.$$name claims || exit; done

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

test-long: install  # compiled as for a run that is not a test
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= $(BIN)/python -m pytest -q -m long

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/shellcheck .ci/run docs/cloud/*.sh
	$(BIN)/yamllint --strict docs/cloud

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
