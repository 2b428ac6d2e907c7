# `make run`: the whole pipeline, from text to report. `make study STUDY=<name>`: the same on
# another base, in studies/<name>/. `make test`: tests, lint, types.
# All set up .venv first; repeated, that costs nothing. `make test-slow`: what takes longer, `make
# docs`: the API reference, docs/api/.
PYTHON ?= python3
BIN := .venv/bin
# the stages' `python` is this environment's
export PATH := $(CURDIR)/$(BIN):$(PATH)
PIP_INSTALL := pip install --quiet --disable-pip-version-check
OLDEST := transformers==5.23.0

STUDIES := $(patsubst studies/%/params.yaml,%,$(wildcard studies/*/params.yaml))
STUDY_FOLDER := studies/$(STUDY)

.PHONY: setup run study links test test-slow test-oldest test-faults test-readme coverage wheel-test
.PHONY: fuzz licences docs
setup: .venv/done .dvc/plots/page.html

.venv/done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@# torch by itself first, so that nothing else pulls another build of it
	$(BIN)/$(PIP_INSTALL) torch==2.13.0
	$(BIN)/$(PIP_INSTALL) -c constraints.txt -e '.[test]'
	touch $@

# `dvc plots show` with Vega in its page, not from a network
.dvc/plots/page.html: .venv/done infini/console/plots_page.py
	$(BIN)/python -m infini.console.plots_page
	$(BIN)/dvc config --local plots.html_template plots/page.html

# The report once more: nothing may have changed since the last one, and DVC has the last word.
run: setup
	$(BIN)/python -m infini params
	$(BIN)/dvc repro
	@$(BIN)/python -m stages.compare_report

study: links setup
	@cd $(STUDY_FOLDER) && if test -f requirements.txt; then \
		$(PIP_INSTALL) --no-deps -r requirements.txt; fi
	@# the base first: a folder that is not there yet would be taken for a hub's name
	@cd $(STUDY_FOLDER) && if test -f base/dvc.yaml; then dvc repro base/dvc.yaml; fi
	cd $(STUDY_FOLDER) && python -m infini params && dvc repro
	@cd $(STUDY_FOLDER) && echo "In $(STUDY_FOLDER):" && python -m stages.compare_report

# A study has its params.yaml and whatever writes its data/base. The rest is linked, and a .dvc
# makes it a project of its own: the default run never reads it.
links:
	@test -f "$(STUDY_FOLDER)/params.yaml" || \
		{ echo "error: STUDY: one of $(STUDIES) is needed, got '$(STUDY)'" >&2; exit 2; }
	@cd $(STUDY_FOLDER) && mkdir -p .dvc audits data/base && \
		ln -sfn ../../dvc.yaml ../../infini ../../stages ../../.dvcignore . && \
		ln -sfn ../../../.dvc/config ../../../.dvc/plots .dvc && \
		ln -sfn ../../../audits/dvc.yaml audits && \
		dvc config --local plots.html_template plots/page.html

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	@command -v chromedriver >/dev/null || { timeout 300 sh -c "apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver" \
		>/dev/null 2>&1 </dev/null; } || echo "no chromium: the page's browser tests are skipped"
	$(BIN)/pytest -n auto --dist worksteal

# The model's tests on the oldest transformers that pyproject.toml allows; `test` has the newest.
test-oldest: setup
	$(BIN)/$(PIP_INSTALL) --upgrade --no-deps --target .oldest $(OLDEST)
	PYTHONPATH=.oldest $(BIN)/pytest -n auto tests/model

# What `test` leaves out.
test-slow: test-oldest test-faults test-readme coverage wheel-test

# All tests once more, lines counted, those that stages run in their own processes too; below 90 %
# it fails (pyproject.toml).
coverage: setup
	$(BIN)/pytest -n auto --dist worksteal --cov --cov-report=term

# A model saved by this environment, loaded in one that has nothing but the wheel and what it
# requires.
wheel-test: setup
	rm -rf .wheel
	$(BIN)/pip wheel --quiet --no-deps -w .wheel .
	$(BIN)/python tests/wheel.py save .wheel/model
	$(PYTHON) -m venv .wheel/venv
	.wheel/venv/bin/$(PIP_INSTALL) torch==2.13.0
	.wheel/venv/bin/$(PIP_INSTALL) -c constraints.txt .wheel/*.whl
	cd .wheel && venv/bin/python ../tests/wheel.py load model

docs: setup
	$(BIN)/python -m docs.api docs/api

# Every stage killed at twenty moments and on a full disk, DVC killed and run twice at once.
test-faults: setup
	$(BIN)/pytest -m faults

# What the README says one can do, on a clean clone, with short runs.
test-readme: setup
	$(BIN)/pytest -m readme

# Loaders on files damaged at random, other ones every time; about ten minutes on two cores.
fuzz: setup
	FUZZ=fuzz $(BIN)/pytest -n auto tests/test_fuzz.py

licences: setup
	$(BIN)/python tests/licences.py > docs/licences.md
