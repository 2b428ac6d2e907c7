# `make run`: text → trained versions → reports/index.html. `make study STUDY=<name>`: the same on
# another base or with other recipes, in studies/<name>/. `make test`: lint, types, tests.
# Each installs first what it needs into .venv; that costs nothing when it is there already.
# `make test-slow`: what takes longer. `make docs`: the documentation as a site.
PYTHON ?= python3
BIN := .venv/bin
# the stages' `python` is this environment's
export PATH := $(CURDIR)/$(BIN):$(PATH)
# uv reads none of pip's settings: hand on where pip looks for packages
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_INDEX ?= $(PIP_EXTRA_INDEX_URL)
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
UV := $(BIN)/uv
# as pip does; without that variable Python itself compiles what is imported
UV_INSTALL := $(UV) pip install --quiet $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)
INSTALL := $(UV_INSTALL) --python $(BIN)/python
TORCH := torch==2.13.0
OLDEST := transformers==5.23.0
KVPRESS := kvpress==0.5.5

STUDIES := $(patsubst studies/%/params.yaml,%,$(wildcard studies/*/params.yaml))
STUDY_FOLDER := studies/$(STUDY)
STUDY_PACKAGES := $(wildcard $(STUDY_FOLDER)/requirements.txt)
# DVC's files in a study: byte for byte those of the root
COPIES := dvc.yaml .dvcignore .dvc/config .dvc/plots/curves.json

.PHONY: setup setup-test run study links test test-slow test-oldest test-faults test-readme coverage
.PHONY: wheel-test kvpress-parity fuzz licences docs
setup: .venv/pipeline.done .dvc/plots/page.html
setup-test: setup .venv/test.done

$(UV):
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv==0.13.9

# torch first and alone: asked for with others, it may come as another, larger build
.venv/%.done: pyproject.toml constraints.txt | $(UV)
	$(INSTALL) $(TORCH)
	$(INSTALL) -c constraints.txt -e '.[$*]'
	touch $@

# `dvc plots show` with Vega in its page, not from a network
.dvc/plots/page.html: infini/console/plots_page.py | .venv/pipeline.done
	$(BIN)/python -m infini.console.plots_page
	$(BIN)/dvc config --local plots.html_template plots/page.html

# All versions but those that params.yaml lists under `on_demand`; `dvc repro` runs them too.
run: setup
	$(BIN)/python -m infini params
	$(BIN)/dvc repro $$($(BIN)/python -m infini params --targets)
	@$(BIN)/dvc repro -s compare_report
	@$(BIN)/python -m infini.console.restore_lock

# What is in Git and has not changed does not run again, even where its data are not in this clone.
# All of it from the start: `dvc repro` in the study's folder.
study: links setup $(STUDY_PACKAGES:requirements.txt=.packages/done)
	@# the base first: a missing folder would be taken for a hub's name
	@cd $(STUDY_FOLDER) && if test -f base/dvc.yaml; then dvc repro base/dvc.yaml; fi
	@cd $(STUDY_FOLDER) && python -m infini params
	@cd $(STUDY_FOLDER) && { dvc repro --allow-missing || { echo "error: if a file of data/ is missing, \
	the stage that writes it has not changed, and its data are not in this clone: all stages run by \
	cd $(STUDY_FOLDER) && dvc repro" >&2; exit 1; }; }

# The packages of a study's own, beside the environment, without their requirements.
studies/%/.packages/done: studies/%/requirements.txt | $(UV)
	$(UV_INSTALL) --python $(BIN)/python --no-deps --target $(@D) -r $<
	touch $@

# A study is a DVC project of its own: params.yaml, whatever writes its data/base, copies of DVC's
# files, and links to the code. The default run never reads it.
links: .dvc/plots/page.html
	@test -f "$(STUDY_FOLDER)/params.yaml" || \
		{ echo "error: STUDY must be one of: $(STUDIES), got '$(STUDY)'" >&2; exit 2; }
	@mkdir -p $(STUDY_FOLDER)/.dvc/plots
	@for file in $(COPIES); do cp $$file $(STUDY_FOLDER)/$$file; done
	@cd $(STUDY_FOLDER) && ln -sfn ../../infini ../../stages . && \
		{ test -f .dvc/config.local || \
		printf '[plots]\n    html_template = ../../../.dvc/plots/page.html\n' > .dvc/config.local; }

test: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	@command -v chromedriver >/dev/null || { timeout 300 sh -c "apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver" \
		>/dev/null 2>&1 </dev/null; } || echo "no chromium: the page's browser tests are skipped"
	$(BIN)/pytest -n auto --dist worksteal

# The model's tests on the oldest transformers that pyproject.toml allows; `test` has the newest.
test-oldest: setup-test
	$(INSTALL) --no-deps --target .oldest $(OLDEST)
	PYTHONPATH=.oldest $(BIN)/pytest -n auto tests/model

# What `test` leaves out.
test-slow: test-oldest test-faults test-readme coverage wheel-test

# All tests once more and those that take a minute, lines counted, those that stages run in their own
# processes too; below 90 % it fails (pyproject.toml).
coverage: setup-test
	$(BIN)/pytest -n auto --dist worksteal -m 'not faults and not readme' --cov --cov-report=term

# A model saved by this environment, loaded in one that has nothing but the wheel and what it
# requires.
wheel-test: setup-test
	rm -rf .wheel
	$(UV) build --quiet --wheel -o .wheel
	$(BIN)/python tests/wheel.py save .wheel/model
	$(UV) venv --quiet --python $(BIN)/python .wheel/venv
	$(UV_INSTALL) --python .wheel/venv $(TORCH)
	$(UV_INSTALL) --python .wheel/venv -c constraints.txt .wheel/*.whl
	cd .wheel && venv/bin/python ../tests/wheel.py load model

# Scores of our retention policies against kvpress', which needs an older transformers.
kvpress-parity: .venv/pipeline.done .kvpress/done
	$(BIN)/python tests/kvpress/ours.py .kvpress/scores.safetensors
	.kvpress/bin/python tests/kvpress/theirs.py .kvpress/scores.safetensors

.kvpress/done: tests/kvpress/constraints.txt | $(UV)
	rm -rf .kvpress
	$(UV) venv --quiet --python $(BIN)/python .kvpress
	$(UV_INSTALL) --python .kvpress $(TORCH)
	$(UV_INSTALL) --python .kvpress -c $< $(KVPRESS)
	touch $@

# site/index.html out of every Markdown file; what mkdocs warns of, a broken link too, is an error.
# With it reports/index.html of the default run and of every study, made of what is in Git alone.
docs: setup-test
	rm -rf .pages && mkdir .pages
	git ls-files 'params.yaml' 'reports/*' 'studies/*/params.yaml' 'studies/*/reports/*' ':!*dvc.*' | \
		xargs cp --parents -t .pages
	cd .pages && for metrics in reports/metrics/base.json studies/*/reports/metrics/base.json; do \
		(cd ./$${metrics%reports/*} && PYTHONPATH=$(CURDIR) python -m stages.compare_report) || exit; \
	done
	git ls-files -co --exclude-standard '*.md' '*.svg' LICENSE constraints.txt | xargs cp --parents -t .pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Every stage killed at twenty moments and on a full disk, DVC killed and run twice at once.
test-faults: setup-test
	$(BIN)/pytest -m faults

# The commands of README and docs/pipeline.md, on a clean clone, with short runs.
test-readme: setup-test
	$(BIN)/pytest -m readme

# Loaders on files damaged at random; about ten minutes on two cores.
fuzz: setup-test
	FUZZ=fuzz $(BIN)/pytest -n auto tests/test_fuzz.py

licences: setup-test
	$(BIN)/python tests/licences.py > docs/licences.md
