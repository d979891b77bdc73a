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
.PHONY: help env deepspeed repro test docs lab demo released studies readme clean

help:
	@echo 'make env       install everything into .venv (PY=python3.12 chooses the Python, 3.11 or newer;'
	@echo '               UV_TORCH_BACKEND=cpu the smaller PyTorch for machines without a GPU)'
	@echo 'make repro     run the whole study; ends with a table: scores here against the committed ones'
	@echo 'make lab       open JupyterLab at the first chapter'
	@echo 'make demo      converse about paintings in the browser, on this computer alone'
	@echo 'make docs      build the site in docs/_build/html'
	@echo 'make test      run every chapter, every test, the pipeline at smoke size, and build the site'
	@echo 'make released  fetch the released benchmark answers and score them again'
	@echo 'make deepspeed an environment with DeepSpeed over .venv, in which `make test` then checks ZeRO-3'
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

# DeepSpeed is no requirement: it is built from source, and on a CPU compiles once more when it runs (a C++ compiler).
deepspeed: build/deepspeed/ok

build/deepspeed/ok: .venv/ok
	$(BIN)/python -m venv --clear build/deepspeed
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > build/site.txt
	mv build/site.txt "$$(build/deepspeed/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth"
	$(BIN)/uv pip install --quiet --python build/deepspeed/bin/python setuptools==84.2.1 ninja==1.13.2 hjson==3.1.0 \
	  msgpack==1.2.4 py-cpuinfo==9.0.0 einops==0.8.2
	DS_BUILD_OPS=0 $(BIN)/uv pip install --quiet --python build/deepspeed/bin/python --no-deps --no-build-isolation deepspeed==0.19.8
	@touch $@

repro: env
	@$(BIN)/python -c "from artgpt4.files import mend_dvc_lock; mend_dvc_lock()"
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
