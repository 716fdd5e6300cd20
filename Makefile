# make demo   set up, then run the whole pipeline on data that ships with scikit-learn
# make test   set up, then lint, type-check and test
# Both set up everything on a fresh machine: a virtual environment, pinned packages, torch first.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint unit slow bench format clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/deepcomp demo

test: lint unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: setup
	$(BIN)/pytest -n 2

slow: setup
	$(BIN)/pytest -n 2 -m slow

bench: setup
	$(BIN)/python benchmarks/size.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/deep_compression.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
