# A fresh machine: `make demo` or `make test` makes .venv and installs into it.
PYTHON ?= python3
VENV := .venv
BIN := $(abspath $(VENV))/bin
SOURCES := pyro_moe_program.py $(shell find pyro_moe models inference -name '*.py')

# A process for each core, of one thread; the tests of a file share their fits.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test check docs wheel

demo: $(VENV)/installed
	$(BIN)/pyro-moe demo --out demo

test: $(VENV)/installed
	$(PYTEST)
	$(PYTEST) --doctest-modules --pyargs pyro_moe pyro_moe.models pyro_moe.inference

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd $$(mktemp -d) && $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p pyro_moe

docs: $(VENV)/docs-installed
	rm -rf docs/_build
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build/html

wheel:
	.ci/wheel

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	    'pyro-moe[docs]'
	touch $@

# Strict editable mode puts models/ and inference/ under the package also for type checkers; it
# links the files that there are, so that a new file wants a new install.
$(VENV)/installed: pyproject.toml constraints.txt $(SOURCES)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	    --editable '.[dev]' --config-settings editable_mode=strict
	touch $@
