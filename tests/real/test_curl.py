"""`curl`, for what the libraries do not do on the wire."""

import json
import subprocess

import pytest
from compare import plain
from rig import MODEL

ASK = json.dumps({"model": MODEL, "prompt": "One, two, three,", "max_tokens": 4, "temperature": 0})


def curl(url: str, *flags: str, body: str | bytes | None = None) -> tuple[int, dict[str, str], str, str]:
    """Status, headers of the final answer, body, and what `-v` told about the wire."""
    send = [] if body is None else ["-H", "Content-Type: application/json", "--data-binary", "@-"]
    command = ["curl", "-sSv", "--max-time", "60", "-D", "/dev/fd/2", "-w", "%{stderr}status=%{http_code}\n"]
    given = body.encode() if isinstance(body, str) else body
    done = subprocess.run([*command, *send, *flags, url], input=given, capture_output=True, timeout=90)
    told = done.stderr.decode(errors="replace")
    assert done.returncode == 0, told
    lines = [line[2:] for line in told.splitlines() if line.startswith("< ")]
    heads = [n for n, line in enumerate(lines) if line.startswith("HTTP/")]
    headers = dict(line.lower().split(": ", 1) for line in lines[heads[-1] + 1 :] if ": " in line)
    status = int(told.rsplit("status=", 1)[1])
    return status, headers, done.stdout.decode(), told


def both(direct: str, gateway, path: str, *flags: str, body=None):
    """Status and body through and directly, and what was told of the first."""
    through = curl(gateway.url + path, *flags, body=body)
    directly = curl(direct + path, *flags, body=body)
    return (through[0], through[2]), (directly[0], directly[2]), through


def data(answer):
    return answer[0], plain(json.loads(answer[1]))


def test_chunked_upload(direct, gateway):
    through, directly, told = both(direct, gateway, "/v1/completions", "-H", "Transfer-Encoding: chunked", body=ASK)
    assert "Transfer-Encoding: chunked" in told[3]
    assert through[0] == 200
    assert data(through) == data(directly)


def test_expect_100_continue(direct, gateway):
    """A body that waits for `100 Continue` is let in at once, not after curl's second of patience."""
    flags = ("-H", "Expect: 100-continue", "--expect100-timeout", "50")
    through = curl(gateway.url + "/v1/completions", *flags, body=ASK)
    assert "HTTP/1.1 100" in through[3]
    assert through[0] == 200
    assert plain(json.loads(through[2])) == plain(json.loads(curl(direct + "/v1/completions", body=ASK)[2]))


def test_http_1_0(direct, gateway):
    """No chunks for a client of 1.0: a whole answer has a length, a stream ends with the connection."""
    through, directly, told = both(direct, gateway, "/v1/completions", "--http1.0", body=ASK)
    assert through[0] == 200
    assert "transfer-encoding" not in told[1]
    assert data(through) == data(directly)
    stream = curl(gateway.url + "/v1/completions", "--http1.0", body=ASK[:-1] + ', "stream": true}')
    assert "transfer-encoding" not in stream[1]
    assert stream[2].endswith("data: [DONE]\n\n")


def test_http_2_by_prior_knowledge(direct, gateway):
    through = curl(gateway.url + "/v1/completions", "--http2-prior-knowledge", body=ASK)
    assert "HTTP/2 200" in through[3]
    assert plain(json.loads(through[2])) == plain(json.loads(curl(direct + "/v1/completions", body=ASK)[2]))


def test_compressed(direct, gateway):
    """Whatever coding comes back, curl can read it and it is the same answer."""
    through, directly, _ = both(direct, gateway, "/v1/completions", "--compressed", body=ASK)
    assert through[0] == 200
    assert data(through) == data(directly)


def test_head_and_options_and_unknown_paths_pass(direct, gateway):
    """An engine's own surface is reached: its properties, its tokenizer, its refusals."""
    through, directly, _ = both(direct, gateway, "/tokenize", body=json.dumps({"model": MODEL, "content": "Zürich 🌍"}))
    assert through[0] == 200
    assert through == directly
    for flags in (["-I"], ["-X", "OPTIONS"], ["-X", "DELETE"]):
        through, directly, _ = both(direct, gateway, "/props", *flags)
        assert through[0] == directly[0], flags
    through, directly, _ = both(direct, gateway, "/no/such/path?with=a%20query&and=%2F")
    assert through == directly


@pytest.mark.parametrize("kind", ["whole", "stream"])
def test_headers_of_the_engine_are_kept(direct, gateway, kind):
    """All that the engine says about its answer arrives; hop-by-hop fields are each hop's own."""
    hop_by_hop = {"connection", "keep-alive", "transfer-encoding", "content-length", "date"}
    body = ASK if kind == "whole" else ASK[:-1] + ', "stream": true}'
    through = curl(gateway.url + "/v1/completions", body=body)[1]
    directly = curl(direct + "/v1/completions", body=body)[1]
    kept = {name: value for name, value in directly.items() if name not in hop_by_hop}
    assert {name: through.get(name) for name in kept} == kept


def test_large_upload(direct, gateway):
    """1 MiB of text, a body that no single read takes in."""
    body = json.dumps({"model": MODEL, "content": "all work and no play " * 50_000})
    assert len(body) > 1_000_000
    through, directly, _ = both(direct, gateway, "/tokenize", body=body)
    assert through[0] == 200
    assert through == directly
