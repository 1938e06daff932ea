# make demo    the whole chain on the bundled scenes (installs first, then needs no network)
# make test    the tests; make test-slow those that start and end processes for long; make test-docs what the documents call
# make test-recipes  every recipe, on small pictures with few steps
# make test-gpu  every stage on CUDA beside the CPU (skips without a GPU)
# make test-interop  exported labels, read by datumaro and label-studio-sdk (in a folder of their own: they want another numpy)
# make test-azure    a workspace in Azure's emulator, which npm installs
# make check   lint, types and the direction of imports

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INTEROP := $(VENV)/interop
AZURITE := $(VENV)/azurite

.PHONY: install demo test test-slow test-docs test-recipes test-interop azurite test-azure test-gpu check lint types layers clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "unsupseg needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "Python has no venv module: on Debian, apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,crf]' || \
		$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/unsupseg demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m "not slow and not documents"

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

test-docs: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m documents

test-recipes: install
	OMP_NUM_THREADS=1 UNSUPSEG_TEST_RECIPES=all $(BIN)/pytest tests/end_to_end/test_recipes.py

$(INTEROP): $(STAMP)
	rm -rf $@
	$(BIN)/python -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
		print(*extras["interop"], sep="\n")' >$(VENV)/interop.txt
	$(BIN)/pip install --quiet --target $@ -c constraints.txt -r $(VENV)/interop.txt

test-interop: $(INTEROP)
	PYTHONPATH=$(INTEROP) OMP_NUM_THREADS=1 $(BIN)/pytest tests/pipeline/test_export_labels_elsewhere.py -rs

azurite: $(AZURITE)

$(AZURITE): $(STAMP)
	npm install --silent --no-fund --no-audit --prefix $@ azurite@3.35.0

test-azure: $(AZURITE)
	PATH="$(abspath $(AZURITE))/node_modules/.bin:$$PATH" OMP_NUM_THREADS=1 $(BIN)/pytest tests/storage/test_azure.py -rs

test-gpu: install
	$(BIN)/pytest tests/gpu -rs

check: lint types layers

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

layers: install
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) unsupseg-workspace
