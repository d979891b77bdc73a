# What a person types. `make` alone lists it.
SHELL := /bin/bash
PY ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python
export PATH := $(CURDIR)/$(BIN):$(PATH)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export DVC_NO_ANALYTICS := 1
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help env repro test docs lab demo released studies readme clean

help:
	@echo 'make env       install everything into .venv (PY=python3.12 chooses the Python, 3.11 or newer;'
	@echo '               UV_TORCH_BACKEND=cpu the smaller PyTorch for machines without a GPU)'
	@echo 'make repro     run the whole study; ends with a table: scores here against the committed ones'
	@echo 'make lab       open JupyterLab at the first chapter'
	@echo 'make demo      converse about paintings in the browser, on this computer alone'
	@echo 'make docs      build the site in docs/_build/html'
	@echo 'make test      run every chapter, every test, the pipeline at smoke size, and build the site'
	@echo 'make released  fetch the released benchmark answers and score them again'
	@echo 'make studies   run the longer experiments'
	@echo 'make readme    render README.md from nbs/index.ipynb, and its pictures'
	@echo 'make clean     delete what can be built again: site, caches (not data, not results)'

env: .venv/ok

.venv/ok: settings.ini setup.py pyproject.toml requirements.txt
	@$(PY) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python %d.%d is too old: install 3.11 or newer and name it, as in `make env PY=python3.12`" % v[:2])'
	$(PY) -m venv .venv
	$(BIN)/pip install --quiet uv==0.13.9
	$(UV) torch==2.13.0
	$(UV) -r requirements.txt
	$(UV) -e . --no-deps
	@touch $@

repro: env
	dvc repro
	artgpt4 compare

test: env
	@python tests/run.py

docs: env
	@python docs/build.py

lab: env
	jupyter lab nbs/00_profile.ipynb

demo: env
	artgpt4 demo

released: env
	artgpt4 released

studies: env
	dvc repro studies/dvc.yaml

readme: env
	@python docs/pictures.py
	@python docs/readme.py

clean:
	rm -rf docs/_build _proc .pytest_cache build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
