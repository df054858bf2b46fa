# Everything runs in an environment of its own, .venv, which needs python3 (with venv), make and g++.

PYTHON ?= python3
TORCH ?= 2.13.0
VENV ?= .venv

PY := $(VENV)/bin/python
JOBS := $(or $(MAX_JOBS),$(shell nproc))
# Of a build in this tree there is one, so one stamp: which environment and which torch it is for.
BUILT := build/.built-$(notdir $(VENV))-$(TORCH)
MATRIX := .venv-matrix-$(TORCH)$(if $(filter command environment,$(origin CXX)),-$(notdir $(CXX)))
CXX_FILES := $(shell find csrc examples tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
BUILD_FILES := setup.py pyproject.toml build_backend/installed_torch.py $(filter csrc/%,$(CXX_FILES))

.PHONY: help test bench bench-quick exhaustive lint format ctest ctest-aarch64 sdist-check \
	install-matrix matrix clean
.DELETE_ON_ERROR:

help:
	@echo 'make test            build in .venv and run the tests'
	@echo 'make bench           CRReLU against GELU and others: speed, and training (10 minutes)'
	@echo 'make bench-quick     the same in 2 minutes, coarser'
	@echo 'make exhaustive      the error over all 2^32 float32 inputs, for each instruction set'
	@echo 'make ctest           C++ test of the torch-free kernels, and the libtorch example'
	@echo 'make ctest-aarch64   the C++ test, cross-compiled for aarch64 and run under qemu'
	@echo 'make lint            ruff, mypy, clang-format; make format applies what can be applied'
	@echo 'make install-matrix  each way to install, in clean environments'
	@echo 'make sdist-check     of these, the sdist alone'
	@echo 'make matrix TORCH=x  the tests against another torch, CXX=clang++ for another compiler'
	@echo 'make clean           remove everything that was built, and .venv'
	@echo
	@echo 'TORCH (now $(TORCH)) chooses the version of torch in .venv; MAX_JOBS limits the build.'

$(VENV)/.torch-$(TORCH):
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --upgrade torch==$(TORCH) setuptools ninja
	rm -f $(VENV)/.torch-*
	touch $@

$(BUILT): $(VENV)/.torch-$(TORCH) $(BUILD_FILES)
	rm -f build/.built-*
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m pip install --no-build-isolation -e '.[dev]'
	touch $@

test: $(BUILT)
	$(PY) -m pytest

bench: $(BUILT)
	$(PY) -m benchmarks

bench-quick: $(BUILT)
	$(PY) -m benchmarks --quick

exhaustive: build/cmake/CMakeCache.txt
	$(VENV)/bin/cmake --build build/cmake --parallel $(JOBS) --target exhaustive
	build/cmake/exhaustive

lint: $(BUILT)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)

format: $(BUILT)
	$(PY) -m ruff check --fix
	$(PY) -m ruff format
	$(VENV)/bin/clang-format -i $(CXX_FILES)

build/cmake/CMakeCache.txt: $(BUILT)
	$(VENV)/bin/cmake -S . -B build/cmake \
		-DCMAKE_PREFIX_PATH="$$($(PY) -c 'import torch; print(torch.utils.cmake_prefix_path)')"

ctest: build/cmake/CMakeCache.txt
	$(VENV)/bin/cmake --build build/cmake --parallel $(JOBS)
	$(VENV)/bin/ctest --test-dir build/cmake --output-on-failure

ctest-aarch64: $(BUILT)
	$(VENV)/bin/cmake -S . -B build/cmake-aarch64 \
		-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
		-DCMAKE_CROSSCOMPILING_EMULATOR='qemu-aarch64-static;-L;/usr/aarch64-linux-gnu'
	$(VENV)/bin/cmake --build build/cmake-aarch64 --parallel $(JOBS)
	$(VENV)/bin/ctest --test-dir build/cmake-aarch64 --output-on-failure

install-matrix: $(BUILT)
	$(PY) -m pytest -v tests/install_matrix.py

sdist-check: $(BUILT)
	$(PY) -m pytest -v tests/install_matrix.py -k sdist

# An unpacked sdist, so that this tree's build is left alone (a build in place belongs to one torch).
matrix:
	rm -rf $(MATRIX)/source $(MATRIX)/*.tar.gz
	mkdir -p $(MATRIX)/source
	$(PYTHON) -m venv $(MATRIX)/venv
	$(MATRIX)/venv/bin/python -m pip install build
	$(MATRIX)/venv/bin/python -m build --sdist --outdir $(MATRIX)
	tar -xzf $(MATRIX)/crrelu_ext-*.tar.gz -C $(MATRIX)/source --strip-components=1
	$(MAKE) -C $(MATRIX)/source test TORCH=$(TORCH) VENV=../venv

clean:
	rm -rf .venv .venv-matrix-* build dist *.egg-info crrelu_ext/*.so crrelu_ext/_build_config.json
