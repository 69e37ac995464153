# A thin front for CMake, the weights and the checks. Every target works as the first command on a fresh Debian 12
# or Ubuntu 22.04: what is missing is installed (.ci/install), fetched (weights/fetch.py) and built before it runs.
#
#   MODEL=name   a model of weights/models.json, or an alias, or the path of one
#   ARGS='...'   passed on to the program that a target runs
#   JOBS=n       parallel compilations and tests
#   TARGET=name  of `fuzz`: gguf, safetensors, cache, tokenizer, prompts, json, lines; SECONDS=n, MINUTES=n: how long
#   RUN=folder   of `report` and `rate`: one or more runs, or a folder of runs

MODEL ?= smollm2-135m-instruct
ARGS ?=
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
PYTHON ?= python3
SECONDS ?= 60
MINUTES ?= 10
FUZZ_TARGETS := gguf safetensors cache tokenizer prompts json lines

CXX_SOURCES = $(shell find kernels engine loaders experiments tests bench -name '*.cpp' -o -name '*.h')
RUNS := run-2a run-2b run-2c run-2d
FAMILIES := $(addsuffix -family,$(RUNS))
SWEEPS := run-position run-partial run-layers run-components run-signatures

.PHONY: all help install install-tidy install-fuzz install-coverage install-page page-script weights weights-all corpus fit-projector train-projector run-2e projector-self release report rate test test-release \
        test-sanitizers test-asan-ubsan test-tsan test-report test-pages test-interop test-conversions test-llama-cpp test-faults \
        test-differential fuzz fuzz-smoke fuzz-corpus soak mutants coverage $(RUNS) $(FAMILIES) $(SWEEPS) run-all prompts \
        bench bench-peer profile test-cuda-full gpu-tests test-gpu test-planted-faults format tidy oracle clean
.DELETE_ON_ERROR:

all: release ## build everything into build/release (also the bare `make`)
	@$(PYTHON) experiments/page/fetch_plotly.py || echo 'make: only pages need it; going on without' >&2

help: ## this list
	@sed -nE 's/^([a-z0-9-]+)( [a-z0-9-]+)*:.*## (.*)/\1\t\3/p' $(firstword $(MAKEFILE_LIST)) \
	  | while IFS='	' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

# ---- what has to be there first ----

install:
	@.ci/install build

install-tidy:
	@.ci/install tidy

install-fuzz:
	@.ci/install fuzz

install-coverage:
	@.ci/install coverage

install-page:
	@.ci/install page

page-script: install ## fetch the plotly script that pages embed, once
	@$(PYTHON) experiments/page/fetch_plotly.py

weights: install ## fetch MODEL=name into weights/cache, once
	@$(PYTHON) weights/fetch.py $(MODEL) $(if $(filter weights,$(MAKECMDGOALS)),,>/dev/null)

weights-all: install
	@$(PYTHON) weights/fetch.py --all >/dev/null

# Configures a preset once; from then on ninja notices by itself when a CMakeLists.txt changes.
build/%/build.ninja: CMakePresets.json | install
	@cmake --preset $*
	@touch $@

release: build/release/build.ninja install
	@cmake --build build/release -j $(JOBS)

# ---- programs ----

run-2a: ## run phase 2a (identity transfer) on MODEL
run-2b: ## run phase 2b on MODEL
run-2c: ## run phase 2c on MODEL
run-2d: ## run phase 2d on MODEL
run-position: ## sweep: where the source's rows stand, and at which positions
run-partial: ## sweep: the rows of some layers alone
run-layers: ## sweep: layer by layer into neutral text, content and mode
run-components: ## sweep: K or V alone, one KV head alone, one lane alone
run-signatures: ## cache signatures of true, false and invented statements (phase 1.5)
# Its own program alone is built, so that a first answer does not wait for the tests; stdout is the program's.
$(RUNS) $(SWEEPS): build/release/build.ninja install weights
	@cmake --build build/release -j $(JOBS) --target $(subst -,_,$@) >&2
	@build/release/experiments/$(subst -,_,$@) --model $(MODEL) $(ARGS)

# A hundred trials and more of each kind, beside the plan's cases: minutes, and gone on with after an interruption.
run-2a-family: ## the same with its families (also run-2b-family, run-2c-family, run-2d-family)
$(FAMILIES): %-family:
	@$(MAKE) --no-print-directory $* ARGS='--family $(ARGS)'

run-all: ## every phase with its families, then every sweep: hours, gone on with after an interruption
	@set -e; for target in $(FAMILIES) $(SWEEPS); do $(MAKE) --no-print-directory $$target; done

# Phase 2e: caches from one model to another, both ways, by the projectors kept in weights/projectors; PROJECTORS=folder
# takes others. Texts of the corpus' test split and sentences about invented people: an hour.
SOURCE ?= smollm2-135m-instruct
TARGET ?= qwen2.5-coder-0.5b-instruct
PROJECTORS ?= weights/projectors
CROSSINGS = $(SOURCE)-to-$(TARGET) $(TARGET)-to-$(SOURCE)

corpus: install ## make the texts of phase 2e from Debian's packages, once
	@$(PYTHON) experiments/projector/make_corpus.py

run-2e: build/release/build.ninja weights-all corpus ## phase 2e: the cache of SOURCE in TARGET and back
	@cmake --build build/release -j $(JOBS) --target run_2e >&2
	@set -e; for pair in $(CROSSINGS); do \
	  file=$(PROJECTORS)/$$pair.safetensors; shuffled=weights/projectors/shuffled/$$pair.safetensors; \
	  [ -f $$file ] || { echo "run-2e: $$file is not there; make fit-projector PROJECTORS=folder makes it" >&2; exit 1; }; \
	  build/release/experiments/run_2e --source $${pair%-to-*} --target $${pair#*-to-} --projector $$file \
	    $$([ ! -f $$shuffled ] || echo --shuffled $$shuffled) $(ARGS); done

fit-projector: build/release/build.ninja weights-all corpus ## fit ridge projectors, as those in weights/projectors were
	@cmake --build build/release -j $(JOBS) --target fit_projector >&2
	@build/release/experiments/fit_projector --source $(SOURCE) --target $(TARGET) --sums weights/cache/projector/sums \
	  --out $(PROJECTORS) $(ARGS)

FROM = $(PROJECTORS)/$(SOURCE)-to-$(TARGET).safetensors
train-projector: build/release/build.ninja weights-all corpus ## train SOURCE-to-TARGET through the receiver, from the kept one or FROM=file: hours
	@cmake --build build/release -j $(JOBS) --target train_projector >&2
	@build/release/experiments/train_projector --source $(SOURCE) --target $(TARGET) \
	  --from $(FROM) --out weights/cache/projector/$(SOURCE)-to-$(TARGET)-trained.safetensors $(ARGS)

projector-self: build/release/build.ninja weights-all corpus ## control: SOURCE projected to itself closes 99% of the gap, or this fails
	@cmake --build build/release -j $(JOBS) --target fit_projector >&2
	@build/release/experiments/fit_projector --source $(SOURCE) --target $(SOURCE) --train 288 --lambda 0.01,0.001,0.0001 --whole \
	  --out weights/cache/projector/self --at-least 0.99 $(ARGS)

# The sets are committed; this makes them anew from experiments/prompts/tables.py.
prompts: weights-all ## make the prompt sets anew
	@[ -x .venv-prompts/bin/python ] || $(PYTHON) -m venv .venv-prompts
	@.venv-prompts/bin/python -m pip install --quiet -r experiments/prompts/requirements.txt
	@.venv-prompts/bin/python experiments/prompts/make_prompts.py

# The analysis' Python packages, pinned, in an environment of their own.
.venv-report/ready: experiments/python/requirements.txt | install
	@$(PYTHON) -m venv .venv-report
	@.venv-report/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

report: .venv-report/ready page-script ## verdicts, statistics and report.html of RUN=folder
	@.venv-report/bin/python experiments/python/report.py $(if $(RUN),$(RUN),runs) $(ARGS)

rate: .venv-report/ready ## rate the coherence of the answers of RUN=folder, blinded (ARGS='--rater NAME')
	@.venv-report/bin/python experiments/python/rate.py $(if $(RUN),$(RUN),runs) $(ARGS)

bench: ## run the micro-benchmarks (ARGS go to each), or, where MODEL=... is given, `kvfold bench` on it
ifneq ($(filter command environment,$(origin MODEL)),)
bench: release weights
	@build/release/experiments/kvfold bench $(MODEL) $(ARGS)
else
bench: release
	@found=; for program in build/release/bench/*_bench; do \
	  [ -x "$$program" ] || continue; found=1; "$$program" $(ARGS) || exit 1; done; \
	  [ -n "$$found" ] || echo 'bench: no benchmarks in bench/'
endif

# The gate looks at sources alone; the rest is of MODEL's file too.
PROFILED = $(if $(findstring --gate,$(ARGS)),,build/release/build.ninja weights)
profile: install $(PROFILED) ## the CUDA kernels as compiled for a GTX 1660, and the least time of a token there (ARGS=--gate: check alone)
	@[ -x .venv-profile/bin/python ] || $(PYTHON) -m venv .venv-profile
	@.venv-profile/bin/python -m pip install --quiet --disable-pip-version-check -r bench/requirements-profile.txt
	@$(if $(PROFILED),cmake --build build/release -j $(JOBS) --target kvfold >&2)
	@.venv-profile/bin/python bench/profile_cuda.py --model $(MODEL) $(ARGS)

bench-peer: release weights-all ## kvfold against llama.cpp, in turn, as a table (builds the peer once: minutes)
	@[ -x .venv-peer/bin/python ] || $(PYTHON) -m venv .venv-peer
	@CMAKE_ARGS=-DGGML_NATIVE=ON .venv-peer/bin/python -m pip install --quiet --no-binary llama-cpp-python -r bench/requirements-peer.txt
	@.venv-peer/bin/python bench/compare.py --kvfold build/release/experiments/kvfold --peer-python .venv-peer/bin/python $(ARGS)

# ---- checks ----

# One after the other also under -j: each uses all the cores.
test: ## all tests, on real models too, and those of the analysis
	@$(MAKE) --no-print-directory test-release
	@$(MAKE) --no-print-directory test-report
	@! { nvidia-smi -L >/dev/null 2>&1 && grep -q kvfold_gpu_tests build/release/build.ninja; } || $(MAKE) --no-print-directory test-gpu

test-sanitizers: ## the unit tests under AddressSanitizer with UBSan, and those with threads under ThreadSanitizer
	@$(MAKE) --no-print-directory test-asan-ubsan
	@$(MAKE) --no-print-directory test-tsan

test-release: release weights-all page-script ## all tests in release, real models included
	@ctest --test-dir build/release --output-on-failure --no-tests=error -j $(JOBS)

# ThreadSanitizer's address layout does not bear the address randomisation of newer kernels, so that is off where
# turning it off is allowed (inside some containers it is not).
test-asan-ubsan test-tsan: test-%: build/%/build.ninja install
	@cmake --build build/$* -j $(JOBS)
	@fixed=$$(setarch -R true 2>/dev/null && echo 'setarch -R' || true); \
	  UBSAN_OPTIONS=print_stacktrace=1 $$fixed \
	  ctest --test-dir build/$* -L sanitize --output-on-failure --no-tests=error -j $(JOBS)

test-report: .venv-report/ready ## the analysis: statistics, verdicts, a simulation with known truth
	@.venv-report/bin/python -m pytest -q -p no:cacheprovider experiments/python/tests

test-pages: release weights page-script install-page .venv-report/ready ## look at the HTML pages in headless Chromium
	@cd tests/pages && $(PYTHON) -m unittest

# The environment takes 6 GB; INTEROP_PYTHON names one that has the packages already.
INTEROP_PYTHON ?= .venv-interop/bin/python
.venv-interop/bin/python: tests/interop/requirements.txt | install
	@$(PYTHON) -m venv .venv-interop
	@.venv-interop/bin/python -m pip install --quiet -r tests/interop/requirements.txt
	@touch $@

test-interop: release weights-all $(INTEROP_PYTHON) ## caches to transformers and back, with the same weights on both sides
	@$(INTEROP_PYTHON) tests/interop/test_interop.py -v

# ---- hostile files, faults, load ----

# What is found lies in build/fuzz/found-*; what it grows, in build/fuzz/corpus, is gone on with. Seed 0 is another each
# time; the smoke run's is always the same, so that what it says of a change is about the change.
FUZZ_RUN = mkdir -p build/fuzz/corpus/$(1) && build/fuzz/tests/fuzz/fuzz_$(1) -max_total_time=$(SECONDS) -seed=$(2) -max_len=16384 \
  -timeout=10 -rss_limit_mb=1024 -reload=0 -print_final_stats=1 -artifact_prefix=build/fuzz/found-$(1)- \
  $(if $(filter prompts json lines,$(1)),-dict=tests/fuzz/json.dict) build/fuzz/corpus/$(1) tests/fuzz/corpus/$(1)

fuzz: TARGET := gguf
fuzz: install-fuzz build/fuzz/build.ninja ## fuzz TARGET=gguf|safetensors|cache|tokenizer|prompts|json|lines for SECONDS=60
	@cmake --build build/fuzz -j $(JOBS) --target fuzz_$(TARGET)
	@$(call FUZZ_RUN,$(TARGET),0)

fuzz-smoke: install-fuzz build/fuzz/build.ninja ## every target for SECONDS, JOBS at a time
	@cmake --build build/fuzz -j $(JOBS)
	@$(MAKE) --no-print-directory -j $(JOBS) $(addprefix fuzz-smoke-,$(FUZZ_TARGETS))

fuzz-smoke-%:
	@($(call FUZZ_RUN,$*,1)) >build/fuzz/$*.log 2>&1 || { tail -n 40 build/fuzz/$*.log >&2; exit 1; }
	@echo "fuzz $*: $$(sed -nE 's/^stat::number_of_executed_units: *//p' build/fuzz/$*.log) executions, nothing found"

fuzz-corpus: build/release/build.ninja install ## make the seeds of fuzzing anew
	@cmake --build build/release -j $(JOBS) --target fuzz_make_corpus
	@build/release/tests/fuzz/fuzz_make_corpus tests/fuzz/corpus

test-faults: build/release/build.ninja install ## every fault of the system rather than a sample, and 1,000 processes killed
	@cmake --build build/release -j $(JOBS) --target faults_test faults_cli_test
	@build/release/tests/faults_test --gtest_brief=1
	@KVFOLD_EVERY_FAULT=1 KVFOLD_KILLS=1000 build/release/tests/faults_cli_test --gtest_brief=1

test-differential: build/release/build.ninja install ## verdicts on 10,000 damaged files of each format, against PyPI's readers
	@cmake --build build/release -j $(JOBS) --target fuzz_verdicts
	@[ -x .venv-differential/bin/python ] || $(PYTHON) -m venv .venv-differential
	@.venv-differential/bin/python -m pip install --quiet -r tests/oracle/requirements-differential.txt
	@.venv-differential/bin/python tests/oracle/differential.py build/release/tests/fuzz/fuzz_verdicts $(ARGS)

soak: build/release/build.ninja install ## caches made, changed and dropped at random for MINUTES=10, at bounded memory
	@cmake --build build/release -j $(JOBS) --target load_test
	@KVFOLD_SOAK_MINUTES=$(MINUTES) build/release/tests/load_test

mutants: install ## plant faults in the sources, one at a time, and see whether a test notices: an hour and more (ARGS='--only WORD')
	@$(PYTHON) tests/mutants.py --jobs $(JOBS) $(ARGS)

# Of what reads files from strangers, and of the cache: every test file that runs it without a real model or a program.
COVERAGE_TESTS := gguf_test gguf_metadata_test gguf_save_test json_test model_loader_test open_test known_attacks_test convert_test \
  random_shapes_test checkpoint_test checkpoint_config_test checkpoint_weights_test spm_test fallback_test tokenizer_test \
  tokenizer_pipeline_test tokenizer_files_test file_test safetensors_test cache_file_test cache_info_test exchange_test kv_ops_test \
  kv_property_test load_test statistics_test crossing_test projector_test projector_file_test ridge_test recompute_test fuzz_corpus_test \
  train_projector_test faults_test

coverage: install-coverage build/coverage/build.ninja ## lines and branches that the tests run, of loaders and engine/kv, and those that none does
	@cmake --build build/coverage -j $(JOBS) --target $(COVERAGE_TESTS)
	@rm -rf build/coverage/counts; mkdir build/coverage/counts
	@set -e; for test in $(COVERAGE_TESTS); do LLVM_PROFILE_FILE=$(CURDIR)/build/coverage/counts/$$test-%p.profraw \
	  build/coverage/tests/$$test --gtest_brief=1 >build/coverage/$$test.log 2>&1 || \
	  { tail -n 40 build/coverage/$$test.log >&2; exit 1; }; done
	@$(PYTHON) tests/coverage.py build/coverage loaders engine/kv engine/file.cpp engine/safetensors.cpp --tests $(COVERAGE_TESTS)

test-cuda-full: build/release/build.ninja install ## the CUDA kernels on the emulated device over the whole table of shapes
	@cmake --build build/release -j $(JOBS) --target cuda_kernels_test cuda_attention_test cuda_cache_rows_test cuda_backend_test
	@KVFOLD_CUDA_FULL=1 ctest --test-dir build/release -R '^(Orders/(Kernels|Attention|CacheRows)|CudaBackend.MoreTokens)' --output-on-failure --no-tests=error -j $(JOBS)

# The same tests with the kernels as nvcc compiles them; the whole table of shapes and the real model without compute-sanitizer,
# which makes them many times slower.
# initcheck looks at kernels alone, as whole pages are copied in which some rows were never written.
GPU_TOOLS = memcheck racecheck synccheck 'initcheck --check-api-memory-access no'
GPU_TESTS = kernels attention cache_rows cache cache_property backend
gpu-tests: build/release/build.ninja install ## build what test-gpu runs; needs nvcc and no GPU
	@grep -q kvfold_gpu_tests build/release/build.ninja || { echo 'gpu-tests: built without CUDA' >&2; exit 2; }
	@cmake --build build/release -j $(JOBS) --target kvfold_gpu_tests

test-gpu: weights-all ## all CUDA tests on this machine's GPU, under compute-sanitizer too where it is installed
	@nvidia-smi -L >/dev/null 2>&1 || { echo 'test-gpu: no GPU on this machine' >&2; exit 2; }
	@$(MAKE) --no-print-directory gpu-tests
	@command -v compute-sanitizer >/dev/null || echo 'test-gpu: no compute-sanitizer in PATH (PyPI has it as nvidia-cuda-sanitizer-api): the tests run without it' >&2
	@set -e; for test in $(GPU_TESTS) model_real; do program=build/release/tests/cuda/cuda_$${test}_test_gpu; \
	  KVFOLD_CUDA_FULL=1 $$program --gtest_brief=1; \
	  command -v compute-sanitizer >/dev/null && [ $$test != model_real ] || continue; \
	  for tool in $(GPU_TOOLS); do compute-sanitizer --tool $$tool --error-exitcode 1 $$program --gtest_brief=1; done; done

test-planted-faults: build/release/build.ninja install ## faults planted in the CUDA kernels, one at a time: a test must notice each
	@cmake --build build/release -j $(JOBS) --target kvfold_planted
	@$(PYTHON) tests/cuda/plant_faults.py run build/release/tests/cuda

format: install-tidy ## rewrite all C++ sources by .clang-format
	@clang-format -i $(CXX_SOURCES)

# The sources are linted in the release build's terms, so that must be configured, not built.
tidy: install-tidy build/release/build.ninja ## check format and run clang-tidy, warnings as errors
	@clang-format --dry-run -Werror $(CXX_SOURCES)
	@cmake build/release --log-level=WARNING >/dev/null
	@run-clang-tidy -quiet -j $(JOBS) -p build/release '^$(CURDIR)/(kernels|engine|loaders|experiments|tests|bench)/.*\.cpp$$' \
	  >build/tidy.log 2>&1 || \
	  { sed 's/\x1b\[[0-9;]*m//g' build/tidy.log | grep -E '(warning|error):' | sort -u >&2; \
	    echo 'tidy: the whole of it is in build/tidy.log' >&2; exit 1; }

# The fixtures come from independent programs (transformers, tokenizers); they are committed, this makes them anew.
oracle: weights-all ## make the test fixtures anew with the scripts in tests/oracle
	@[ -x .venv-oracle/bin/python ] || $(PYTHON) -m venv .venv-oracle
	@.venv-oracle/bin/python -m pip install --quiet -r tests/oracle/requirements.txt -r tests/oracle/requirements-checkpoints.txt
	@set -e; for script in tests/oracle/make_*.py; do echo "$$script"; .venv-oracle/bin/python "$$script"; done

# Whole models in both formats against one another, and against transformers; minutes and some GB, so not among
# the tests.
test-conversions: release weights-all ## slow: real models as safetensors and back, large checkpoints of transformers
	@[ -x .venv-checkpoints/bin/python ] || $(PYTHON) -m venv .venv-checkpoints
	@.venv-checkpoints/bin/python -m pip install --quiet -r tests/oracle/requirements-checkpoints.txt
	@.venv-checkpoints/bin/python tests/oracle/make_checkpoints.py --full build/checkpoints
	@.venv-checkpoints/bin/python tests/oracle/check_checkpoints.py build/release/experiments/kvfold \
	  weights/cache/smollm2-135m-instruct.gguf weights/cache/qwen2.5-coder-0.5b-instruct.gguf --full build/checkpoints

# With the environment of bench-peer, which builds llama.cpp.
test-llama-cpp: release weights ## slow: converted models in llama.cpp
	@[ -x .venv-peer/bin/python ] || $(PYTHON) -m venv .venv-peer
	@CMAKE_ARGS=-DGGML_NATIVE=ON .venv-peer/bin/python -m pip install --quiet --no-binary llama-cpp-python -r bench/requirements-peer.txt
	@.venv-peer/bin/python tests/oracle/check_llama_cpp.py build/release/experiments/kvfold weights/cache/smollm2-135m-instruct.gguf

clean: ## remove build/ (weights/cache and runs/ stay)
	rm -rf build
