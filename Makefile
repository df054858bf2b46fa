# What is for development runs in an environment of its own, mostly .venv, which needs python3 (with
# venv), make and g++.

PYTHON ?= python3
TORCH ?= 2.13.0
VENV ?= .venv

PY := $(VENV)/bin/python
# Whole files to each process: what a file's tests share is made once. In their order, since a file
# with few tests, test_isa.py, takes longest and must not come last.
PARALLEL = -n $(JOBS) --dist loadfile --no-loadscope-reorder
JOBS := $(or $(MAX_JOBS),$(shell nproc))
# Of a build in this tree there is one, so one stamp: which environment and which torch it is for.
BUILT := build/.built-$(notdir $(VENV))-$(TORCH)
MATRIX := .venv-matrix-$(TORCH)$(if $(filter command environment,$(origin CXX)),-$(notdir $(CXX)))
CXX_FILES := $(shell find csrc examples tests benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
BUILD_FILES := setup.py pyproject.toml build_backend/installed_torch.py $(filter csrc/%,$(CXX_FILES))

# One environment for the recipes and for CUDA: torch's CUDA build takes 6 GB of disk.
CUDA := .venv-cuda
CUDA_TORCH := torch==2.14.1 torchvision==0.29.1
NVCC := $(shell command -v nvcc)
# What `make test` cannot show: the machine code, and on the CPU of the CUDA build what stands between
# the kernels and a model.
CUDA_TESTS := tests/cuda --ignore=tests/cuda/test_simt.py $(patsubst %,tests/test_%.py,accuracy \
	arguments epsilon_gradient gradients loading models module strides tensors)
OUT ?= build/gpu
STUDY ?= build/study
STUDY_DYNAMIC ?= build/study-dynamic

.PHONY: help test has-nvcc cuda-installed cuda-check recipes-check gpu gpu-choices study study-dynamic \
	bench bench-quick exhaustive lint format ctest ctest-aarch64 ctest-clang sdist-check install-matrix \
	matrix clean
.DELETE_ON_ERROR:

help:
	@echo 'make test            build in .venv and run the tests'
	@echo 'make cuda-check      build the CUDA kernels for common GPUs and prove them without one'
	@echo 'make gpu OUT=folder  all of the CUDA tests and benchmarks on the GPU that is here, in the'
	@echo '                     current Python, without a network (9 minutes); PARTS="ncu tests"'
	@echo '                     does these alone'
	@echo 'make gpu-choices     what other choices in the kernels would change on the GPU that is here'
	@echo 'make recipes-check   the tests of the training recipes with timm, torchvision and trl'
	@echo 'make study           train small models with six activations (8 minutes)'
	@echo 'make study-dynamic   does dynamic EAFO help? Against fixed ones and three controls (8 minutes)'
	@echo 'make bench           CRReLU against GELU and others: speed, and training (10 minutes)'
	@echo 'make bench-quick     the same in 2 minutes, coarser'
	@echo 'make exhaustive      the error over all 2^32 float32 inputs, for each instruction set'
	@echo 'make ctest           C++ test of the torch-free kernels, AVX-512 emulated, and the libtorch example'
	@echo 'make ctest-aarch64   the C++ test, cross-compiled for aarch64 and run under qemu'
	@echo 'make ctest-clang     the C++ test, built by clang, with its address and undefined behaviour sanitizers'
	@echo 'make lint            ruff, mypy, clang-format; make format applies what can be applied'
	@echo 'make install-matrix  each way to install, in clean environments'
	@echo 'make sdist-check     of these, the sdist alone'
	@echo 'make matrix TORCH=x  the tests against another torch, CXX=clang++ for another compiler'
	@echo 'make clean           remove everything that was built, and .venv'
	@echo
	@echo 'Times are without making .venv, the first time, from the package index, and without the'
	@echo 'build (2 to 3 minutes on 2 cores).'
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
	$(PY) -m pytest $(PARALLEL)

# torch's CUDA build, with torchvision (which does not load beside a CPU build), and an unpacked sdist
# in it, as matrix does it. Needs no GPU; has CUDA kernels where there is nvcc.
cuda-installed:
	rm -rf $(CUDA)/source $(CUDA)/*.tar.gz
	mkdir -p $(CUDA)/source
	$(PYTHON) -m venv $(CUDA)/venv
	$(CUDA)/venv/bin/python -m pip install build $(CUDA_TORCH) setuptools ninja \
		nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	$(CUDA)/venv/bin/python -m build --sdist --outdir $(CUDA)
	tar -xzf $(CUDA)/crrelu_ext-*.tar.gz -C $(CUDA)/source --strip-components=1
	cd $(CUDA)/source && PATH="$(abspath $(CUDA))/venv/bin:$$PATH" \
		FORCE_CUDA=$(if $(NVCC),1,0) TORCH_CUDA_ARCH_LIST='8.0;9.0;10.0+PTX' \
		python -m pip install --no-build-isolation -e '.[recipes,test]' $(CUDA_TORCH)

recipes-check: cuda-installed
	cd $(CUDA)/source && ../venv/bin/python -m pytest $(PARALLEL) tests/training

has-nvcc:
	@test -n '$(NVCC)' || { echo 'make cuda-check needs nvcc, which is not here' >&2; exit 1; }

cuda-check: has-nvcc cuda-installed
	cd $(CUDA)/source && ../venv/bin/python -m pytest $(PARALLEL) $(CUDA_TESTS)
	cd $(CUDA)/source && ../venv/bin/python benchmarks/gpu/run.py --dry-run ../gpu

gpu:
	$(PYTHON) benchmarks/gpu/run.py '$(OUT)' $(if $(PARTS),--parts $(PARTS))

gpu-choices:
	mkdir -p '$(OUT)'
	$(PYTHON) benchmarks/gpu/choices.py '$(OUT)/choices.md'

# Stopped at any moment, it goes on where it was.
study: $(BUILT)
	$(PY) -m benchmarks.training run $(STUDY) --config benchmarks/training/recipes/embedded.yaml
	$(PY) -m benchmarks.training report $(STUDY) --out benchmarks/results/training

# The same, and what the theory supposes, measured in each layer of the trained models.
study-dynamic: $(BUILT)
	$(PY) -m benchmarks.training run $(STUDY_DYNAMIC) \
		--config benchmarks/training/recipes/embedded-dynamic.yaml
	$(PY) -m benchmarks.training premise $(STUDY_DYNAMIC)
	$(PY) -m benchmarks.training report $(STUDY_DYNAMIC) --out benchmarks/results/dynamic

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
	$(VENV)/bin/ctest --test-dir build/cmake-aarch64 --parallel $(JOBS) --output-on-failure

# Another compiler, and what its sanitizers find.
ctest-clang: $(BUILT)
	$(VENV)/bin/cmake -S . -B build/cmake-clang -DCMAKE_CXX_COMPILER=clang++ \
		-DCMAKE_BUILD_TYPE=Debug \
		-DCMAKE_CXX_FLAGS='-O1 -fsanitize=address,undefined -fno-sanitize-recover=all'
	$(VENV)/bin/cmake --build build/cmake-clang --parallel $(JOBS) --target test_kernels
	$(VENV)/bin/ctest --test-dir build/cmake-clang --exclude-regex emulated --output-on-failure

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
	rm -rf .venv .venv-cuda .venv-matrix-* build dist *.egg-info crrelu_ext/*.so crrelu_ext/_build_config.json
