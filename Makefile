# Every target sets itself up on a fresh machine: a virtual environment in .venv, filled by pip.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test check bench bench-quick docs clean

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(STAMP)

demo: $(STAMP)  ## the whole road on a simulated feed
	rm -rf runs/demo
	$(BIN)/multigate demo --out runs/demo

test: $(STAMP)  ## all tests; MULTIGATE_DATA=FOLDER adds those on real data
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

check: $(STAMP)  ## style, types, floors, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet

bench: $(STAMP)  ## every benchmark (MULTIGATE_DATA); rewrites the tables of benchmarks/RESULTS.md; 15 minutes
	$(BIN)/python benchmarks/suite.py

bench-quick: $(STAMP)  ## its comparisons, small and once; two minutes, nothing is rewritten
	$(BIN)/python benchmarks/suite.py --quick

docs: $(STAMP)  ## serve the docs at localhost:8000
	$(BIN)/mkdocs serve

clean:
	rm -rf .venv site runs build dist
