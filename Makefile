# Needs only Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= build/demo

.PHONY: demo test lint clean

demo: $(VENV)/.core  ## cut the example network, recover it, and prove the cut
	@mkdir -p $(OUT)
	$(BIN)/graphprune run examples/digits/digits.onnx -o $(OUT)/digits.pruned.onnx --pass entropy --pass recover --rate 0.5 \
	    --data examples/digits/digits_calibration.npz --eval examples.digits.evaluate:accuracy
	$(BIN)/graphprune verify examples/digits/digits.onnx $(OUT)/digits.pruned.onnx
	$(BIN)/graphprune run examples/digits/digits.onnx -o $(OUT)/digits.quarter.onnx --pass obs --pass recover --budget macs=0.25 \
	    --data examples/digits/digits_calibration.npz --eval examples.digits.evaluate:accuracy

test: $(VENV)/.test  ## run the test suite
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev  ## ruff and mypy strict
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[test]'
	@touch $@ $(VENV)/.core

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@ $(VENV)/.test $(VENV)/.core

clean:
	rm -rf $(VENV) build dist
