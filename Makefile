PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo demo-keras test lint clean

# At most 10 minutes on real images, with the original, which is trained once and kept in .cache/.
demo: $(STAMP)
	rm -rf runs/demo
	$(BIN)/autocompress search --config experiments/mnist_resnet8/config.yaml --out runs/demo

# The same network and data in Keras, in at most 16 minutes.
demo-keras: $(STAMP)
	rm -rf runs/demo-keras
	$(BIN)/autocompress search --config experiments/mnist_keras_resnet8/config.yaml --out runs/demo-keras

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not timing" --numprocesses 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/pytest -m timing

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[torch,keras,dev]'
	touch $@

clean:
	rm -rf $(VENV) .cache runs
