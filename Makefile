# The habits of this project. `make` lists them.

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
PYTEST := $(TARGET)/venv/bin/python -m pytest
# Seconds each fuzz target runs in `make fuzz`.
FUZZ_SECONDS ?= 60

.DEFAULT_GOAL := help
.PHONY: help demo test test-rust test-real kill-matrix soak siege setup lint fmt docs bench fuzz loom test-vllm

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## a gateway in front of two simulated spot backends and an on-demand one; one of them is killed every 20 s
	$(CARGO) run --release --locked -- demo

test: setup test-rust test-real ## everything: unit, stage, whole-process, and real engines and clients

setup: ## what the tests need: curl, Node.js, a Python environment under target/ (quick when it is there)
	@tests/real/setup.sh test

test-rust: ## the Rust tests alone: no setup needed
	$(CARGO) test --locked

test-real: setup ## two llama.cpp replicas and real client libraries through the release binary
	$(CARGO) build --release --locked
	$(PYTEST) -c tests/real/pytest.ini tests/real

test-vllm: ## cut streams of a real vLLM (5.9 GB from PyPI, minutes to start): not part of `make test`
	@tests/vllm/setup.sh
	$(CARGO) build --release --locked
	$(PYTEST) -s -c tests/real/pytest.ini tests/vllm

kill-matrix: setup ## real replicas killed, hung and noticed at every tenth of an answer, in every dialect
	$(CARGO) build --release --locked
	SLUICEGATE_TENTHS=all $(PYTEST) -c tests/real/pytest.ini tests/real/test_resume.py

soak: ## ten minutes of 100 clients that check every token while backends are killed, hung and noticed at random
	SLUICEGATE_SOAK=600 $(CARGO) test --locked --test process -- --nocapture whatever_happens

siege: ## thousands of connections, slow readers and large uploads against the running gateway: its memory, before and after
	SLUICEGATE_SIEGE=full $(CARGO) test --locked --test process -- --nocapture memory

lint: ## formatting, clippy, documentation links: warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --quiet

fmt: ## format the sources
	$(CARGO) fmt

docs: ## the API documentation, in a browser
	$(CARGO) doc --locked --no-deps --open

bench: ## CPU time per request against Debian's nginx, on this machine, in one run
	@tests/real/setup.sh bench
	$(CARGO) build --release --locked
	python3 benches/overhead.py --bin $(TARGET)/release/sluicegate

fuzz: ## every fuzz target for FUZZ_SECONDS (60), from the committed seeds
	@command -v cargo-fuzz >/dev/null || $(CARGO) install --locked cargo-fuzz
	@tests/fuzz/smoke.sh $(FUZZ_SECONDS)

loom: ## the in-flight map under more orders of its threads than the tests look at
	LOOM_MAX_PREEMPTIONS=5 $(CARGO) test --locked --test loom
