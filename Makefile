# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` work on a fresh machine with Python 3.11, gcc and make; every target sets up .venv itself.

PYTHON ?= python3.11
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
BIN := .venv/bin
READY := .venv/.ready
TORCH := .venv/.torch
PEER := .venv-peer/bin/python
DEMO_OUT ?= results/demo
CONFORMANCE_OUT ?= results/conformance
# The second supported core API (2.40, wheel 2.7.0) stands beside the installed wheel; the binding is tested with both.
NEWER := $(CURDIR)/.venv/data-2.7.0
BINDING_TESTS := tests/test_qnn_api_native.py tests/test_capture.py tests/test_artifacts.py tests/test_quantize_forms.py

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo check lint unit test test-all conformance networks networks-pytorch networks-tensorflow networks-tflite tflite-coverage env-openpi env-tensorflow train bench bench-serving bench-sentences bench-quantization bench-smolvla bench-openvla bench-closed-loop soak fuzz sbom wheel docs-api clean
.DELETE_ON_ERROR:

help:
	@echo "make demo         digits: ONNX -> DLC -> QNN CPU, HTP; QDQ -> context binary (under 5 minutes)"
	@echo "make check        static checks and unit tests without native libraries (under 10 minutes)"
	@echo "make test         check + native tests + conformance + demo + documented commands (what CI runs)"
	@echo "make test-all     also the slow tests and the conformance variants with constant inputs (hours)"
	@echo "make lint         ruff, mypy, import-linter"
	@echo "make conformance  the ONNX backend tests over all paths; writes docs/op-coverage.md"
	@echo "make networks     eight real networks at full size on both backends; writes docs/results/networks.md"
	@echo "make env-tensorflow  TensorFlow and tf2onnx in .venv-tensorflow, for tests of TensorFlow's models"
	@echo "make tflite-coverage  every builtin operator of TensorFlow Lite; writes docs/tflite-coverage.md"
	@echo "make networks-tflite  TensorFlow Lite networks against LiteRT; writes docs/results/networks-tflite.md"
	@echo "make networks-pytorch networks-tensorflow  their networks against themselves; write docs/results/networks-*.md"
	@echo "make train        the small policy of training/ from nothing (about half an hour)"
	@echo "make bench        cost against bare C calls and ONNX Runtime's QNN provider"
	@echo "make bench-quantization  the quantizer against ONNX Runtime's and AIMET's (under 3 hours)"
	@echo "make bench-sentences  quantizations of a trained sentence encoder; writes docs/results/sentence-encoder.md"
	@echo "make bench-serving  the policy server under load; writes docs/results/serving.md (2 minutes, needs torch)"
	@echo "make env-openpi   the environment of openpi's client, which the server is tested with"
	@echo "make bench-smolvla  a full-size SmolVLA beside PyTorch; writes docs/results/smolvla.md (40 minutes, 14 GB)"
	@echo "make bench-openvla  a full-size OpenVLA exported and compared; writes docs/results/openvla.md (a quarter hour, 31 GB)"
	@echo "make bench-closed-loop  the small policy's success on every backend; writes docs/results/closed-loop.md (1 hour)"
	@echo "make soak         10,000 runs, 1,000 sessions, 4 threads: nothing grows, nothing is mixed up"
	@echo "make fuzz         mutated model files against every loader"
	@echo "make docs-api     writes docs/api.md from the docstrings"
	@echo "make sbom wheel clean"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

# The developers' PyTorch: what reads and exports PyTorch models is tested with it. Not needed for the demo.
$(TORCH): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	@touch $@

demo: $(READY)
	$(BIN)/python examples/digits/demo.py --output $(DEMO_OUT)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(TORCH)
	$(BIN)/python -m pytest -n $(JOBS) -m "not native and not slow"

check: lint unit

test: lint $(TORCH)
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"
	NPUKIT_DATA_DIR=$(NEWER) $(BIN)/npukit libs add 2.7.0 --quiet
	NPUKIT_DATA_DIR=$(NEWER) $(BIN)/python -m pytest -n $(JOBS) -q $(BINDING_TESTS)
	$(BIN)/python -m conformance run --path cpu,htp,raise,dlc --variant a --aux --jobs $(JOBS) --out $(CONFORMANCE_OUT)
	$(BIN)/python -m conformance compare $(CONFORMANCE_OUT)

test-all: test
	$(BIN)/python -m pytest -n $(JOBS) -m slow
	$(BIN)/python -m conformance run --path cpu,htp,raise,dlc --variant a,b,c --aux --jobs $(JOBS) --out $(CONFORMANCE_OUT)
	$(BIN)/python -m conformance compare $(CONFORMANCE_OUT) --variant a,b,c

conformance: $(READY)
	$(BIN)/python -m conformance run --path cpu,htp,raise,dlc --variant a,b,c --aux --jobs $(JOBS) --out $(CONFORMANCE_OUT)
	$(BIN)/python -m conformance run --light --timeout 900 --jobs 1 --out $(CONFORMANCE_OUT)
	$(BIN)/python -m conformance report $(CONFORMANCE_OUT) --markdown docs/op-coverage.md

# The peer needs an onnxruntime of the time of onnxruntime-qnn 2.3.0: newer ones refuse it.
$(PEER):
	$(PYTHON) -m venv .venv-peer
	$@ -m pip install --quiet onnxruntime==1.24.4 onnxruntime-qnn==2.3.0

# openpi's published client, with which tests/test_serving_openpi.py talks to the server.
env-openpi:
	$(PYTHON) -m venv .venv-openpi
	.venv-openpi/bin/python -m pip install --quiet --require-hashes --no-deps -r constraints-openpi.txt

# TensorFlow with tf2onnx, which TensorFlow models are read and made with; about 1.5 GB.
env-tensorflow:
	$(PYTHON) -m venv .venv-tensorflow
	.venv-tensorflow/bin/python -m pip install --quiet --no-deps -r constraints-tensorflow.txt

networks: $(READY)
	$(BIN)/python -m networks --markdown docs/results/networks.md

networks-pytorch: $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt transformers
	$(BIN)/python -m networks.pytorch --markdown docs/results/networks-pytorch.md
	$(BIN)/python -m benchmarks.pytorch_memory --markdown docs/results/pytorch-memory.md

networks-tflite: $(READY) env-tensorflow
	.venv-tensorflow/bin/python -P networks/tflite_zoo.py results/networks-tflite
	$(BIN)/python -m networks.tflite results/networks-tflite --markdown docs/results/networks-tflite.md

tflite-coverage: $(READY)
	$(BIN)/python -m tools.tflite_coverage --markdown docs/tflite-coverage.md

networks-tensorflow: $(READY) env-tensorflow
	$(BIN)/python -m networks.tensorflow --markdown docs/results/networks-tensorflow.md

# The committed policy is training/checkpoint; this makes another from nothing, beside it.
train: $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[policy,sim]"
	$(BIN)/python -m training

bench: $(READY) $(PEER)
	@mkdir -p results
	$(BIN)/python -m benchmarks --peer-python $(PEER) --json results/bench.json --markdown docs/results/bench.md

# The script makes the peers' environments .venv-peer-ort and .venv-aimet where they are not there yet.
bench-quantization: $(READY)
	@mkdir -p results
	$(BIN)/python -m benchmarks.quantization_peers --json results/quantization-peers.json \
		--markdown docs/results/quantization-peers.md

# Needs torch, for the package of the small policy.
bench-serving: $(READY)
	@mkdir -p results
	test -d results/small-policy || $(BIN)/python -m npukit policy export training/checkpoint -o results/small-policy
	$(BIN)/python -m benchmarks.serving results/small-policy --markdown docs/results/serving.md

bench-sentences: $(READY)
	$(BIN)/python -m benchmarks.sentences --folder results/sentences --markdown docs/results/sentence-encoder.md

# Needs the extras of `make train`; the episodes on QNN CPU take half an hour.
bench-closed-loop: $(TORCH)
	$(BIN)/python -m benchmarks.closed_loop --markdown docs/results/closed-loop.md

bench-smolvla: $(TORCH)
	@mkdir -p results
	$(BIN)/python -m benchmarks.smolvla --json results/smolvla.json --markdown docs/results/smolvla.md

bench-openvla: $(TORCH)
	@mkdir -p results
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[openvla]"
	$(BIN)/python -m benchmarks.openvla --json results/openvla.json --markdown docs/results/openvla.md

soak: $(READY)
	$(BIN)/python -m benchmarks.soak

fuzz: $(READY)
	$(BIN)/python -m fuzz

sbom: $(READY)
	$(BIN)/python tools/sbom.py

docs-api: $(READY)
	$(BIN)/python -m tools.api

wheel: $(READY)
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w dist .

clean:
	rm -rf .venv .venv-peer .venv-peer-ort .venv-aimet .venv-openpi .venv-tensorflow build dist results .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
