# Each target works as the first command on a machine with only make and Python 3.11+: the environment is made first.
#   make demo PYTHON=python3.12 MODEL=mace-mp-0b3-medium.model
VENV ?= .venv
BIN := $(VENV)/bin
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
IS_NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do $$p -c '$(IS_NEW_ENOUGH)' >/dev/null 2>&1 && { echo $$p; break; }; done)
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
EXAMPLES := $(basename $(notdir $(sort $(wildcard docs/examples/*.py))))
BENCHES := $(filter-out bench/_% bench/peers.py bench/wall_peers.py bench/tuning.py bench/screen.py,$(wildcard bench/*.py))
MODEL ?=
OUT ?= demo_output

.PHONY: help env demo demo-numbers test parity integrations matrix bench lint docs wheel clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    convert the bundled model, evaluate and fine-tune it, draw phonons (MODEL=file.model for another, OUT=folder)"
	@echo "make demo-numbers  the demo, and what it found against the numbers of mace-torch and phonopy"
	@echo "make test    the tests that need neither torch nor a network"
	@echo "make parity  the comparison with mace-torch (installs torch)"
	@echo "make integrations  the programs that equijax plugs into, started with it: matcalc, janus-core, Euphonic, i-PI and others"
	@echo "make matrix  files of every release of mace-torch since 0.3.3, each made by that release, and the published widths (ten minutes)"
	@echo "make bench   the benchmarks, one JSON file each under bench/results"
	@echo "make lint    ruff and pyright"
	@echo "make docs    the documentation, with its examples run anew, under site"
	@echo "make wheel   build the wheel, and use both packages from it outside the checkout"

env: $(VENV)/.dev

demo: $(VENV)/.dev
	$(BIN)/python -m equijax.demo --out "$(OUT)" $(if $(MODEL),--model "$(MODEL)")

demo-numbers: demo
	EQUIJAX_DEMO_OUTPUT="$(abspath $(OUT))" $(BIN)/python -m pytest -m demo tests/demonstration

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

parity: $(VENV)/.parity
	TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 $(BIN)/python -m pytest -n 2 -m parity tests/parity

integrations: $(VENV)/.integrations
	$(BIN)/python -m pytest -n 2 --dist loadfile -m integrations tests/integrations

matrix: $(VENV)/.parity
	EQUIJAX_MATRIX=tests/parity/versions.json $(BIN)/python -m pytest -m parity tests/parity/test_versions.py tests/parity/test_real_widths.py

bench: $(VENV)/.dev
	@set -e; for script in $(BENCHES); do echo "== $$script"; $(BIN)/python $$script; done

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# the examples run in the environment of the tests, one after another in one folder; the site is built in its own
docs: $(VENV)/.dev $(VENV)-docs/.docs
	rm -rf build/examples site && mkdir -p build/examples
	@set -e; cd build/examples; for name in $(EXAMPLES); do echo "== $$name"; \
	  $(abspath $(BIN))/python ../../docs/examples/$$name.py >$$name.txt; done
	$(VENV)-docs/bin/mkdocs build --strict

wheel: $(VENV)/.dev
	rm -rf build dist
	$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps -w dist .
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target dist/site dist/*.whl
	cd dist && PYTHONPATH=site $(abspath $(BIN))/python -c "import convert, equijax, pathlib as p; \
	  homes = {p.Path(m.__file__).parent.parent.name for m in (convert, equijax)}; assert homes == {'site'}, homes"
	cd dist && PYTHONPATH=site $(abspath $(BIN))/python -m convert site/equijax/assets/mini.model model

clean:
	rm -rf $(VENV) $(VENV)-docs .cache build dist site

$(VENV)/.dev: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "equijax needs Python 3.11 or newer with the venv module; none of '$(CANDIDATES)' is." >&2; \
	  echo "Install one (Debian and Ubuntu: python3 and python3-venv), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c '$(IS_NEW_ENOUGH)' || { echo "$(PYTHON) is not Python 3.11+ with the venv module" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version); the packages take a few minutes to arrive the first time."
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e ".[dev]"
	@touch $@

$(VENV)/.parity: $(VENV)/.dev
	$(PIP_INSTALL) -e ".[dev,parity]"
	@touch $@

$(VENV)/.integrations: $(VENV)/.dev
	$(PIP_INSTALL) -e ".[dev,integrations]"
	@touch $@

# the packages that mkdocs needs, and equijax as source: mkdocstrings reads it without importing it
$(VENV)-docs/.docs: pyproject.toml constraints.txt | $(VENV)/.dev
	$(BIN)/python -m venv $(VENV)-docs
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')" \
	  >$(VENV)-docs/requirements.txt
	$(VENV)-docs/bin/python -m pip install --disable-pip-version-check -c constraints.txt -r $(VENV)-docs/requirements.txt
	@touch $@
