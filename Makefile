# make                the set-up, then the whole pipeline: every table and figure (demo scale)
# make SCALE=cpu      the same at another scale: smoke, demo, cpu, gpu or thesis
# make evidence       the runs that ask whether excitation does anything: real CIFAR-100, four hours on
#                     2 cores; SCALE=gpu: on a GPU
# make book           the book alone, from the results that are in Git: trains nothing (cpu; or SCALE=…)
# make test           the set-up, then the style checks and the tests
# make bench          times of training, inference and a whole run, into results/benchmarks (half an hour or
#                     more on 2 cores that do nothing else; QUICK=1: a trial, into build/benchmarks)
# make lab            JupyterLab with the project's own kernel
# make setup          the set-up alone: the locked packages in .venv
# make lock           requirements.lock and environment.yml anew, from pyproject.toml
# make clean          removes what make made, and nothing that Git tracks or that you wrote
#
# It needs git, make and Python 3.11, 3.12 or 3.13: the first that is found, or PYTHON=/path/to/one; and
# it uses a C++ compiler, where there is one: c++, or CXX=/path/to/one.

SCALE ?=
PYTHON ?=
SCALES := smoke demo cpu gpu thesis

VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
READY := $(VENV)/ready

export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
# Compiled modules are kept: without them a start costs up to twice the time.
unexport PYTHONDONTWRITEBYTECODE
# The environment is .venv and no other, whatever the calling shell has set.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

# A virtual environment knows its own folder by name: one that was moved or copied is made anew.
HOME_OF_VENV := $(shell cat $(READY) 2>/dev/null)
ifneq ($(HOME_OF_VENV),)
ifneq ($(HOME_OF_VENV),$(CURDIR))
$(shell rm -f $(READY) $(UV))
endif
endif

.PHONY: all evidence book setup test bench lab lock clean

all: $(READY)
	$(BIN)/python -m study.cli make $(if $(SCALE),--scale $(SCALE))

evidence: $(READY)
	$(BIN)/python -m study.cli make --only evidence --scale $(or $(SCALE),cpu)

book: $(READY)
	$(BIN)/python -m study.cli make --only reports --scale $(or $(SCALE),cpu)

setup: $(READY)

# Style first, so that pytest's summary is the last line.
test: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m pytest

bench: $(READY)
	$(if $(QUICK),$(BIN)/python -m benchmarks --quick,$(BIN)/dvc repro benchmarks/dvc.yaml)

lab: $(READY)
	$(BIN)/python -m jupyterlab

$(READY): requirements.lock pyproject.toml | $(UV)
	$(UV) pip install --python $(BIN)/python --no-deps --require-hashes --compile-bytecode \
		--requirements requirements.lock
	$(UV) pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m wexlib.ops || echo "Excitation on a CPU is several times slower without it."
	@printf '%s\n' "$(CURDIR)" > $@

# uv, which installs the rest, comes first and by its own hash, which stands in the lock like any other.
$(UV):
	@python=; \
	for name in $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python); do \
		"$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
			&& python=$$name && break; \
	done; \
	if [ -z "$$python" ]; then \
		echo "wexlib needs Python 3.11, 3.12 or 3.13, and found none as $(or $(PYTHON),python3):" \
			"install one, or name it with make PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi; \
	echo "$$("$$python" --version) into $(VENV)"; \
	if ! "$$python" -m venv --clear $(VENV) >/dev/null 2>&1; then \
		rm -rf $(VENV); \
		echo "$$("$$python" --version) cannot make a virtual environment: install its venv module" \
			"(Debian and Ubuntu: apt install python3-venv), or name another Python with make PYTHON=…" >&2; \
		exit 1; \
	fi
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		--requirement $(VENV)/uv.txt

# environment.yml gets every package of the lock, at its version.
lock: | $(UV)
	$(UV) pip compile pyproject.toml --all-extras --quiet --no-annotate --group setup --universal \
		--python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make lock" --output-file requirements.lock
	sed -n '1,/- -e \./p' environment.yml > environment.yml.new
	sed -n 's/^\([a-z0-9][^\]*\) \\$$/      - \1/p' requirements.lock >> environment.yml.new
	mv environment.yml.new environment.yml

# Only what Git ignores, and only in these folders. DVC's cache stays: it may hold days of training.
clean:
	git clean -dfX -- $(VENV) build $(addprefix data/,$(SCALES) playground) models playground reports results \
		scales wexlib study tests notebooks
	@echo "kept: .dvc/cache, from which dvc restores the results of finished runs"
