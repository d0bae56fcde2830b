#!/usr/bin/env bash
# Runs every fuzz target for a bounded time: smoke.sh SECONDS. New inputs go under target/, the committed seeds
# (seeds/TARGET) are read only. Ends at the first crash, with the command that repeats it.
set -euo pipefail
cd "$(dirname "$0")"
seconds="${1:-60}"
# The stable compiler takes the sanitizer's flags when it is told that this is meant.
export RUSTC_BOOTSTRAP=1

targets=$(cargo fuzz list --fuzz-dir .)
[ -n "$targets" ] || { echo "no fuzz target found in $PWD" >&2; exit 1; }
count=0
for target in $targets; do
  corpus="../../target/fuzz-corpus/$target"
  mkdir -p "$corpus"
  seeds=()
  [ -d "seeds/$target" ] && seeds=("seeds/$target")
  echo "fuzz: $target, $seconds s" >&2
  cargo fuzz run --fuzz-dir . "$target" "$corpus" "${seeds[@]}" -- \
    -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -print_final_stats=0 -verbosity=0
  count=$((count + 1))
done
echo "$count passed, 0 failed"
