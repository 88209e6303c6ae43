# Every target sets itself up: it makes .venv and installs what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo quick test slow soak lint bench wheel docs constraints clean

demo: $(VENV)/.user
	$(BIN)/voices demo

quick: $(VENV)/.dev
	$(PYTEST) -m "not (served or slow or soak)"

test: $(VENV)/.dev
	$(PYTEST) -m "not (slow or soak)"

slow: $(VENV)/.dev
	$(PYTEST) -m "slow and not soak"

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -m soak

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml registry inference cli migrations

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/cli_start.py
	$(BIN)/python benchmarks/registry_scale.py
	$(BIN)/python benchmarks/speak_cached.py

wheel: $(VENV)/.dev
	$(BIN)/python tests/check_wheel.py

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The versions that are installed here, without what tells one build of them from another.
constraints: $(VENV)/.dev $(VENV)/.docs
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/frozen.txt
	{ sed -n '/^#/p' constraints.txt; sed 's/+.*//' $(VENV)/frozen.txt; } > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt

clean:
	rm -rf site $(VENV) .demo demo.wav build dist *.egg-info

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo 'This needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 ...'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.user: $(VENV)/.created pyproject.toml registry/__init__.py
	$(BIN)/pip install --quiet --editable '.[inference]'
	@touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml registry/__init__.py
	$(BIN)/pip install --quiet --editable '.[inference,dev]'
	@touch $@ $(VENV)/.user

$(VENV)/.docs: $(VENV)/.created pyproject.toml registry/__init__.py
	$(BIN)/pip install --quiet --editable '.[docs]'
	@touch $@
