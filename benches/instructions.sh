#!/usr/bin/env bash
# What a request and an event cost in instructions of user space: the shipped binary under callgrind, between
# `sluicegate sim` and curl. Unlike times these barely differ between runs and machines: fit for a gate.
#
#   benches/instructions.sh [BINARY]
#   MAX_REQUEST=60000 MAX_EVENT=9000 benches/instructions.sh     # fails above
#
# Needs valgrind and curl, and the ports 19421 to 19423 of 127.0.0.1.
set -euo pipefail

binary=$(realpath "${1:-target/release/sluicegate}")
requests=1000 streams=5 tokens=200
work=$(mktemp -d)
cd "$work"
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT

body() { # whether to stream
    printf '{"model":"sim","messages":[{"role":"user","content":"%s"}],"temperature":0.7,"stream":%s}' \
        "$(printf 'The lock keeper opens the gate. %.0s' {1..28})" "$1"
}
body false >plain.json
body true >stream.json
cat >gateway.yaml <<Y
listen: 127.0.0.1:19421
admin: 127.0.0.1:19422
backends: [{name: sim, url: 'http://127.0.0.1:19423'}]
health: {interval: 60s}
Y

ask() { # body, count: on one connection, one after the other
    curl -sS -o /dev/null -H 'content-type: application/json' --data "@$1" \
        "http://127.0.0.1:19421/v1/chat/completions?[1-$2]"
}

instructions() { # body, count, tokens per second: of all these requests together
    "$binary" sim --listen 127.0.0.1:19423 --length "$tokens" --tokens-per-second "$3" 2>/dev/null &
    local sim=$!
    valgrind --tool=callgrind --callgrind-out-file=out --instr-atstart=no \
        "$binary" serve --config gateway.yaml >/dev/null 2>log &
    local gateway=$!
    curl -s -o /dev/null --retry 60 --retry-delay 1 --retry-connrefused http://127.0.0.1:19421/v1/models
    ask "$1" 3
    callgrind_control -i on "$gateway" >/dev/null 2>&1
    ask "$1" "$2"
    callgrind_control -i off "$gateway" >/dev/null 2>&1
    kill "$gateway" "$sim"
    wait "$gateway" "$sim" || true
    awk '/^(summary|totals):/ { sum = $2 } END { print sum }' out
}

request=$(($(instructions plain.json "$requests" 0) / requests))
# Paced, so that each event is a wake-up of its own; the request before them is part of it.
event=$(($(instructions stream.json "$streams" 200) / (streams * tokens)))
echo "instructions per request: $request"
echo "instructions per streamed event: $event"
((request <= ${MAX_REQUEST:-request} && event <= ${MAX_EVENT:-event}))
