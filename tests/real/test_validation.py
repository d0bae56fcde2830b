"""What the gateway refuses by itself at the light level, the real engine refuses too; what it passes reaches the engine.

The bodies are those of tests/fixtures/bodies.json. Its `engines` are statuses that were recorded; those that are missing are added by

    test_validation.py record ENGINE ADDRESS [ADDRESS-OF-EMBEDDINGS [ADDRESS-OF-RERANK]]
"""

import http.client
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from rig import ROOT, Engine, Gateway

FIXTURE = ROOT / "tests/fixtures/bodies.json"
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "count_tokens": "/v1/messages/count_tokens",
    "rerank": "/v1/rerank",
    "score": "/v1/score",
}


def cases() -> list[dict]:
    return json.loads(FIXTURE.read_text())


def body(case: dict) -> bytes:
    if "hex" in case:
        return bytes.fromhex(case["hex"])
    text = case["body"]
    if "repeat" in case:
        opened, times, closed = case["repeat"]
        text = text.replace("@{1}@", opened * times + ("0" if closed else "") + closed * times)
    return text.encode()


def ask(url: str, case: dict, timeout: float = 300) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)
    try:
        connection.request("POST", PATHS[case["endpoint"]], body(case), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def ask_all(urls: dict, wanted: list[dict]) -> list[tuple[int, bytes]]:
    """`urls`: by endpoint, with the rest under `None`."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda case: ask(urls.get(case["endpoint"], urls[None]), case), wanted))


@pytest.fixture(scope="module")
def specialists(model_file, engines):
    """Engines by endpoint: one process does either texts, embeddings or reranking."""
    with Engine("embedder", 4, "--pooling", "mean") as mean, Engine("ranker", 4, "--pooling", "rank") as rank:
        yield {None: engines[0].url, "embeddings": mean.url, "rerank": rank.url}


@pytest.fixture(scope="module")
def gateways(specialists):
    def before(name, url):
        return Gateway(f"validation-{name}", [f"{{url: '{url}', models: any}}"], "cache: {mode: off}\n")

    names = {None: "texts", "embeddings": "embeddings", "rerank": "rerank"}
    first, second, third = (before(name, specialists[key]) for key, name in names.items())
    with first, second, third:
        yield dict(zip(names, (first.url, second.url, third.url)))


def test_what_is_refused_the_engine_refuses_too(specialists, gateways):
    refused = [case for case in cases() if case["light"] != "pass"]
    wrong = []
    for case, (status, text) in zip(refused, ask_all(gateways, refused)):
        error = json.loads(text)["error"]
        told = {"param": error.get("param"), "message": error["message"]}
        said = case["light"]
        if case["endpoint"] in ("messages", "count_tokens"):
            # That API has no place for the path; the message says it.
            said = {**said, "param": None}
        if status != 400 or told != said:
            wrong.append((case["name"], status, told))
    assert not wrong
    # The gateway's own reasons apart: what comes twice, its bounds, and what is JSON to some parsers alone.
    theirs = [case for case in refused if "own" not in case]
    assert len(theirs) >= 60
    taken = [case["name"] for case, (status, _) in zip(theirs, ask_all(specialists, theirs)) if status < 400]
    assert not taken


def test_what_passes_reaches_the_engine(gateways):
    passed = [case for case in cases() if case["light"] == "pass"]
    assert len(passed) >= 90
    other = [
        (case["name"], status, case["engines"]["llamacpp"])
        for case, (status, _) in zip(passed, ask_all(gateways, passed))
        if status != case["engines"]["llamacpp"]
    ]
    assert not other


def test_no_recorded_engine_takes_what_is_refused():
    for case in cases():
        if case["light"] != "pass" and "own" not in case:
            assert {"llamacpp", "vllm"} <= case["engines"].keys(), case["name"]
            assert all(status >= 400 for status in case["engines"].values()), case["name"]


def patient(urls: dict, case: dict) -> int:
    """0 = it is still at work after a minute: ask with fewer tokens."""
    try:
        return ask(urls.get(case["endpoint"], urls[None]), case, timeout=60)[0]
    except TimeoutError:
        return 0


def record(engine: str, *urls: str) -> None:
    known = dict(zip((None, "embeddings", "rerank"), urls))
    all_cases = cases()
    # What is over a bound may keep an engine busy for an hour.
    missing = [case for case in all_cases if engine not in case["engines"] and case.get("own") != "bound"]
    with ThreadPoolExecutor(4) as pool:
        for case, status in zip(missing, pool.map(lambda case: patient(known, case), missing)):
            if status:
                case["engines"][engine] = status
            else:
                print(f"no answer: {case['name']}", file=sys.stderr)
    lines = (json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in all_cases)
    FIXTURE.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__" and sys.argv[1:2] == ["record"]:
    record(*sys.argv[2:])
