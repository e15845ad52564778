PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint clean

# A search of at most 8 minutes on real images; the original is trained once and kept in .cache/.
demo: $(STAMP)
	rm -rf runs/demo
	$(BIN)/autocompress search --config experiments/mnist_resnet8/config.yaml --out runs/demo

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[torch,keras,dev]'
	touch $@

clean:
	rm -rf $(VENV) .cache runs
