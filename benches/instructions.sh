#!/usr/bin/env bash
# What a request, an event and a kept answer cost in instructions of user space: the shipped binary under callgrind,
# between `sluicegate sim` and curl. Unlike times these barely differ between runs and machines: fit for a gate.
#
#   benches/instructions.sh [BINARY]
#   MAX_REQUEST=60000 MAX_EVENT=9000 MAX_HIT=40000 benches/instructions.sh     # fails above
#   CACHE=off benches/instructions.sh                                          # requests and events without a cache
#   RESUME=off benches/instructions.sh                                         # or text: streams that cannot go on, or by text
#
# Needs valgrind and curl, and the ports 19421 to 19423 of 127.0.0.1.
set -euo pipefail

binary=$(realpath "${1:-target/release/sluicegate}")
requests=1000 streams=5 tokens=200
work=$(mktemp -d)
cd "$work"
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT

body() { # whether to stream, temperature
    printf '{"model":"sim","messages":[{"role":"user","content":"%s"}],"temperature":%s,"stream":%s}' \
        "$(printf 'The lock keeper opens the gate. %.0s' {1..28})" "$2" "$1"
}
body false 0.7 >plain.json
body true 0.7 >stream.json
body false 0 >greedy.json
cat >gateway.yaml <<Y
listen: 127.0.0.1:19421
admin: 127.0.0.1:19422
backends: [{name: sim, url: 'http://127.0.0.1:19423'}]
health: {interval: 60s}
${CACHE:+cache: {mode: $CACHE\}}
${RESUME:+resume: {mode: $RESUME\}}
Y

ask() { # body, count: on one connection, one after the other
    curl -sS -o /dev/null -H 'content-type: application/json' --data "@$1" \
        "http://127.0.0.1:19421/v1/chat/completions#[1-$2]"
}

instructions() { # body, count, tokens per second, tokens: of all these requests together
    "$binary" sim --listen 127.0.0.1:19423 --length "$4" --tokens-per-second "$3" 2>/dev/null &
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

request=$(($(instructions plain.json "$requests" 0 "$tokens") / requests))
# Paced, so that each event is a wake-up of its own; the request before them is part of it.
event=$(($(instructions stream.json "$streams" 200 "$tokens") / (streams * tokens)))
echo "instructions per request: $request"
echo "instructions per streamed event: $event"
if [[ ${CACHE:-} != off ]]; then
    hit=$(($(instructions greedy.json "$requests" 0 "$tokens") / requests))
    long=$(($(instructions greedy.json "$requests" 0 12000) / requests))
    echo "instructions per kept answer: $hit"
    echo "instructions per kept answer of 64 KiB: $long"
fi
((request <= ${MAX_REQUEST:-request} && event <= ${MAX_EVENT:-event} && ${hit:-0} <= ${MAX_HIT:-${hit:-0}}))
