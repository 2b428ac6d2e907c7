# `make run`: the whole pipeline, from text to report. `make test`: tests, lint, types.
# Both set up .venv first; repeated, that costs nothing.
PYTHON ?= python3
BIN := .venv/bin
# the stages' `python` is this environment's
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup run test
setup: .venv/done

.venv/done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@# torch by itself first, so that nothing else pulls another build of it
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

run: setup
	$(BIN)/python -m infini.params
	$(BIN)/dvc repro

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@command -v chromedriver >/dev/null || { timeout 300 sh -c "apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver" \
		>/dev/null 2>&1 </dev/null; } || echo "no chromium: the page's browser tests are skipped"
	$(BIN)/pytest
