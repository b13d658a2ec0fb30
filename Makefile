# make demo   installs the runtime alone (no torch) and captions a real H.264 file with the demo bundle
# make test   installs what the tests need and runs them; make lint checks style and types
# make test-runtime installs the runtime without torch and runs its tests (minutes)
# make matrix the demo and the runtime's tests on every Python there is, with the newest and the oldest dependencies
# make fine-model trains the second demo model (hours, in the background; the same command goes on after an interruption)
# make fuzz   damages media for FUZZ_SECONDS and reads it, then bundles, templates and records, then draws new examples for
#             the property tests; make test: for seconds, and the same examples at every run
# make mutation changes single operators of four modules: do their tests notice? (MUTANTS=30: of each only 30)
# make test-kernels the decoder's kernels in Triton's interpreter, and some compiled (minutes); make test leaves them out
# make kernels counts what the kernels compile to: registers, bytes, launches
# make coverage which lines of runtime/ the tests run, child processes included
# Everything is installed into virtual environments inside this folder.

PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv-demo
RUNTIME_VENV ?= .venv-runtime
INTERCHANGE_VENV ?= .venv-interchange
# A CPU build where the package index offers one; installed first, so that nothing pulls a CUDA build.
TORCH ?= torch==2.13.0
WORKERS ?= 2
FUZZ_SECONDS ?= 1200

BIN := $(VENV)/bin
RUN := OMP_NUM_THREADS=1 $(BIN)/python -m

.PHONY: coverage demo demo-bundle fine-model fuzz kernels matrix mutation test test-runtime test-kernels test-long test-interchange lint format clean

demo: $(DEMO_VENV)/.installed
	$(DEMO_VENV)/bin/vl3edge caption tests/fixtures/demo_clip.mp4

# The bundle that ships with the package, made anew from the demo checkpoint.
demo-bundle: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/vl3edge export models/demo/checkpoint -o runtime/demo_bundle --force \
		--name vl3edge-demo --group-size 32 --head-bits 8 --target cpu --target cuda --no-kernels

fine-model: $(VENV)/.installed
	OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python -m vl3edge.models.demo.fine.train --out .cache/fine-model

test: $(VENV)/.installed
	$(RUN) pytest -n $(WORKERS) -m "not long" --ignore tests/kernels $(PYTEST_OPTIONS)

# On another Python: make test-runtime PYTHON=python3.13 RUNTIME_VENV=.venv-313
test-runtime: $(RUNTIME_VENV)/.installed
	OMP_NUM_THREADS=1 $(RUNTIME_VENV)/bin/python -m pytest -n $(WORKERS) -m "not long" tests/runtime $(PYTEST_OPTIONS)

matrix:
	$(PYTHON) .ci/matrix.py --tests all --workers $(WORKERS)

test-long: $(VENV)/.installed
	$(RUN) pytest -m long $(PYTEST_OPTIONS)

# GPTQ checkpoints exchanged with GPTQModel, which pins other versions than the other tests need.
test-interchange: $(INTERCHANGE_VENV)/.installed
	OMP_NUM_THREADS=1 $(INTERCHANGE_VENV)/bin/python -m pytest --confcutdir tests/interchange tests/interchange

# A new first number is another stretch of inputs; what fails is kept in .cache/fuzz under its number.
fuzz: $(VENV)/.installed
	$(BIN)/python tests/fuzz/fuzzer.py --seconds $(FUZZ_SECONDS) --first $(or $(FUZZ_FIRST),0) \
		--media $(wildcard ../shared/media) tests/fixtures --keep .cache/fuzz
	$(BIN)/python tests/fuzz/artefacts.py --seconds $(FUZZ_SECONDS) --first $(or $(FUZZ_FIRST),0)
	$(RUN) pytest -n $(WORKERS) -m hypothesis --hypothesis-profile default $(PYTEST_OPTIONS)

mutation: $(VENV)/.installed
	$(BIN)/pip install --quiet cosmic-ray==8.7.0
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutation.py $(if $(MUTANTS),--count $(MUTANTS))

test-kernels: $(VENV)/.installed
	$(RUN) pytest -n $(WORKERS) -m "not long" tests/kernels $(PYTEST_OPTIONS)

kernels: $(VENV)/.installed
	$(BIN)/python benchmarks/decoder_kernels.py

# The tests with the runtime in them; those of the demo model, the torch modules and the quantizer are left out.
COVERAGE_TESTS ?= tests/runtime tests/fuzz tests/export tests/test_layout.py tests/test_parity.py tests/test_readme.py

coverage: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[coverage]'
	rm -rf .cache/coverage
	mkdir -p .cache/coverage
	$(RUN) coverage run -m pytest -n $(WORKERS) -m "not long and not unwatched" $(COVERAGE_TESTS) $(PYTEST_OPTIONS)
	-$(RUN) coverage combine --quiet  # it complains of the torn files that killed processes leave behind
	$(RUN) coverage json --quiet -o .cache/coverage/report.json
	$(BIN)/python benchmarks/line_coverage.py .cache/coverage/report.json

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p .cache/src/vl3edge
	for part in runtime export quant models; do ln -sfn ../../../$$part .cache/src/vl3edge/$$part; done
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(DEMO_VENV) $(RUNTIME_VENV) $(INTERCHANGE_VENV) .cache build *.egg-info

$(DEMO_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/pip install --quiet --editable '.[cpu]'
	touch $@

$(RUNTIME_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(RUNTIME_VENV)
	$(RUNTIME_VENV)/bin/pip install --quiet --editable '.[cpu,test-runtime]'
	touch $@

# transformers imports torchvision for this model's video processor; its own requirements would pull another torch.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable '.[cpu,export,demo,test]'
	$(BIN)/pip install --quiet --no-deps torchvision
	touch $@

# GPTQModel builds a C++ extension and needs torch to be there first.
$(INTERCHANGE_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(INTERCHANGE_VENV)
	$(INTERCHANGE_VENV)/bin/pip install --quiet $(TORCH) numpy==2.2.6 setuptools wheel ninja
	$(INTERCHANGE_VENV)/bin/pip install --quiet --no-build-isolation gptqmodel==7.6.0 optimum==2.3.0
	$(INTERCHANGE_VENV)/bin/pip install --quiet --editable . pytest
	$(INTERCHANGE_VENV)/bin/pip install --quiet --no-deps torchvision
	touch $@
