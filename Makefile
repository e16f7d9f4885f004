PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(BIN)/repertory samples get spoken-numbers
	$(BIN)/repertory demo

test: $(VENV)/.test
	$(BIN)/repertory samples get --all
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m tests.parity
	$(BIN)/python -m pytest -n 2 --dist loadgroup

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[all,dev]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) runs
