# `make run`: the whole pipeline, from text to report. `make test`: tests, lint, types.
# Both set up .venv first; repeated, that costs nothing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup run test
setup: .venv/done

.venv/done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@# torch by itself first, so that nothing else pulls another build of it
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

run: setup
	$(BIN)/dvc repro

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest
