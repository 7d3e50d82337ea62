# The comment after each target says what it does; `make` prints them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
FUZZ_SECONDS ?= 1800
FUZZ_ARGS ?=
AUDIT_ARGS ?=
AUDIT := .venv-audit
VLLM := .venv-vllm
TRITON := .venv-triton
MLSERVER := .venv-mlserver
VLLM_PYTHON ?= python3.11
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
IMAGE ?= semroute-extproc:latest
TARGET ?= cpu
BUNDLE ?= semroute-minilm

.DEFAULT_GOAL := help
.PHONY: help setup demo test screenshots conformance faults soak test-train test-vllm lint format type gen gen-check test-release release test-remote test-kubernetes test-ray bench bench-check gpu fuzz docs docs-check image audit sbom licenses lock train check clean

help:  ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One stamp file per lock file: a changed lock file is reinstalled, an unchanged one is skipped.
$(VENV)/.%: requirements/%.txt pyproject.toml lab/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (PYTHON=$(PYTHON))"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing requirements/$*.txt"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/$*.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . --editable lab
	@touch $@

setup: $(VENV)/.dev  ## install everything a developer needs into .venv

demo: $(VENV)/.demo  ## run a real Envoy, the sidecar and two simulated pools; DEMO_ARGS=--once to stop after the table
	@$(BIN)/semroute demo $(DEMO_ARGS)

test: $(VENV)/.dev  ## run all tests, including those with a real Envoy
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

conformance: $(VENV)/.dev  ## run every case of the protocol, raw and at a real Envoy, and write docs/conformance.md
	$(BIN)/python -m pytest tests/conformance --messages 500000 --conformance-page docs/conformance.md $(TEST_ARGS)

faults: $(VENV)/.dev  ## inject faults under load behind a real Envoy, write docs/reliability.md; eight minutes
	rm -f benchmarks/results/faults.jsonl
	SEMROUTE_FAULTS=$(CURDIR)/benchmarks/results/faults.jsonl $(BIN)/python -m pytest tests/faults/test_faults.py tests/faults/test_shared_state.py
	$(BIN)/python tools/gen_docs.py

soak: $(VENV)/.dev  ## send normal and hostile requests for half an hour, and write docs/reliability.md
	SEMROUTE_SOAK=$(CURDIR)/benchmarks/results/soak.jsonl SEMROUTE_SOAK_SECONDS=1800 $(BIN)/python -m pytest tests/faults/test_soak.py
	$(BIN)/python tools/gen_docs.py

test-release: $(VENV)/.dev  ## build every distribution twice, install each into an empty environment, run the demo
	SEMROUTE_RELEASE=1 $(BIN)/python -m pytest tests/release $(TEST_ARGS)

release: $(VENV)/.dev  ## build the wheels and sdists of this version into dist/, check them and write SHA256SUMS
	rm -rf dist
	$(BIN)/python tools/release.py dist

screenshots: $(VENV)/.dev  ## take the pictures of the page in docs/; needs Chromium, takes eight minutes
	SEMROUTE_SCREENSHOTS=1 $(BIN)/python -m pytest --timeout 600 tests/e2e/test_page.py tests/e2e/test_tour.py $(TEST_ARGS)

test-train: $(VENV)/.dev  ## run the training tests; installs torch if it is missing
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pytest lab/tests/train $(TEST_ARGS)

test-ray: $(VENV)/.dev  ## run the tests on a local Ray cluster; installs Ray (300 MB) if it is missing
	@$(BIN)/python -c 'import ray' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'ray[data]==2.60.0'
	$(BIN)/python -m pytest lab/tests/ray $(TEST_ARGS)

# 2.5 GB, so no other target depends on it.
$(VLLM)/.ready: requirements/vllm.txt
	@command -v $(VLLM_PYTHON) >/dev/null || { echo "test-vllm: Python 3.11 is needed (VLLM_PYTHON=$(VLLM_PYTHON))"; exit 2; }
	@echo "installing requirements/vllm.txt, 2.5 GB"
	@$(VLLM_PYTHON) tools/vllm_env.py $(VLLM) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))
	@touch $@

test-vllm: $(VENV)/.dev $(VLLM)/.ready  ## run the tests against two real vLLM servers on CPU; installs 2.5 GB, takes minutes
	SEMROUTE_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python $(BIN)/python -m pytest tests/vllm $(TEST_ARGS)

# 0.9 GB in all. Triton's Python backend needs the version of Python that it was built for, 3.8 to 3.13.
$(TRITON)/.ready $(MLSERVER)/.ready: .venv-%/.ready: requirements/%.txt
	@echo "installing requirements/$*.txt into .venv-$*"
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/$*.txt
	@touch $@

test-remote: $(VENV)/.dev $(TRITON)/.ready $(MLSERVER)/.ready  ## run the tests with the encoder on a real Triton and a real MLServer
	SEMROUTE_TRITON=$(CURDIR)/$(TRITON) SEMROUTE_MLSERVER=$(CURDIR)/$(MLSERVER) $(BIN)/python -m pytest tests/remote $(TEST_ARGS)

test-kubernetes: $(VENV)/.dev  ## create every object on a real API server; KUBEBUILDER_ASSETS=DIR: etcd, kube-apiserver
	@test -n "$(KUBEBUILDER_ASSETS)" || { echo "KUBEBUILDER_ASSETS is not set: see CONTRIBUTING.md"; exit 2; }
	KUBEBUILDER_ASSETS=$(abspath $(KUBEBUILDER_ASSETS)) $(BIN)/python -m pytest tests/kubernetes $(TEST_ARGS)

lint: $(VENV)/.dev  ## check style, imports and the direction of dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## fix the style automatically where possible
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(VENV)/.dev  ## run mypy in strict mode
	$(BIN)/mypy

gen: $(VENV)/.dev  ## generate the _pb packages from protos/
	$(BIN)/python tools/gen_protos.py

gen-check: $(VENV)/.dev  ## fail if the generated code is stale
	$(BIN)/python tools/gen_protos.py --check

docs: $(VENV)/.dev  ## write the generated parts of docs/
	$(BIN)/python tools/gen_docs.py

docs-check: $(VENV)/.dev  ## fail if the generated parts of docs/ are stale
	$(BIN)/python tools/gen_docs.py --check

bench: $(VENV)/.dev  ## measure the cost of a decision on this machine in about eight minutes; BENCH_ARGS=--quick for two
	$(BIN)/semroute bench --out $(or $(OUT),build/bench) $(BENCH_ARGS)

fuzz: $(VENV)/.dev  ## fuzz every target for 30 minutes in all and record it; FUZZ_SECONDS=60 FUZZ_ARGS=edits for less
	nice -n 10 $(BIN)/python tests/fuzz/fuzz.py --seconds $(FUZZ_SECONDS) $(or $(FUZZ_ARGS),--record)

gpu: $(VENV)/.dev  ## prove and measure the encoder on this machine's GPU; writes benchmarks/results/gpu.json
	$(BIN)/python -m semroute_bench.gpu --out benchmarks/results

bench-check: $(VENV)/.dev  ## fail if a decision is clearly more expensive than recorded; takes half a minute
	$(BIN)/semroute bench --check benchmarks/results/bench.json

image: ## build the container image; TARGET=gpu for one with CUDA
	docker build --tag $(IMAGE) --target $(TARGET) --build-arg REVISION=$$(git rev-parse HEAD) .

$(AUDIT)/.ready: requirements/audit.txt
	@$(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/audit.txt
	@touch $@

audit: $(AUDIT)/.ready  ## look for known vulnerabilities in every pinned package; AUDIT_ARGS=--or-skip
	$(AUDIT)/bin/python tools/supply.py audit $(AUDIT_ARGS)

sbom: $(AUDIT)/.ready  ## write what the image installs, and its licenses, to build/sbom
	$(AUDIT)/bin/python tools/supply.py sbom $(or $(OUT),build/sbom)

licenses: $(AUDIT)/.ready  ## record the license of every pinned package after `make lock`
	$(AUDIT)/bin/python tools/supply.py licenses

train: $(VENV)/.dev  ## retrain a shipped bundle; DATA=DIR: public data sets, BUNDLE=semroute-minilm or semroute-use
	@test -n "$(DATA)" || { echo "DATA is not set: make train DATA=DIR (docs/training.md)"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 onnx safetensors
	$(BIN)/semroute train --data $(DATA) --handwritten datasets --out models/$(BUNDLE) \
	  --spec lab/semroute_lab/train/bundles/$(BUNDLE).toml

lock: $(VENV)/.dev  ## pin requirements/*.txt again from pyproject.toml
	$(BIN)/python tools/lock.py

check: lint type gen-check docs-check test  ## check style, types, generated files, and run all tests

clean:  ## remove everything that the other targets created
	rm -rf $(VENV) $(VLLM) $(TRITON) $(MLSERVER) $(AUDIT) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
