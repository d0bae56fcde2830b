"""A client that leaves is noticed at once: the engine's slot is free long before the answer would have been whole."""

import httpx
import pytest
from rig import MODEL, wait_for

# More tokens than any machine makes while this test runs.
LONG = {"model": MODEL, "temperature": 0, "max_tokens": 1500, "ignore_eos": True}


def all_idle(engines) -> bool:
    return all(engine.is_idle() for engine in engines)


def tokens_made(engines) -> float:
    return sum(engine.counter("tokens_predicted_total") for engine in engines)


@pytest.fixture
def idle(engines):
    wait_for(lambda: all_idle(engines), "the engines are idle before the test")
    return tokens_made(engines)


def test_in_the_middle_of_a_stream(engines, gateway, idle):
    body = {**LONG, "prompt": "Count: 1, 2, 3,", "stream": True}
    with httpx.stream("POST", f"{gateway.url}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        first = next(line for line in lines if line.startswith("data: "))
        assert first
        assert not all_idle(engines)
    wait_for(lambda: all_idle(engines), "the stream's slot is free after the client left")
    assert tokens_made(engines) - idle < LONG["max_tokens"] / 2


def test_before_the_first_byte(engines, gateway, idle):
    """The prompt takes seconds to read in; the client leaves during that."""
    body = {**LONG, "prompt": "word " * 800, "stream": True}
    with httpx.Client(timeout=60) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"{gateway.url}/v1/completions", json=body, timeout=httpx.Timeout(60, read=0.5))
    wait_for(lambda: all_idle(engines), "the prompt's slot is free after the client left")
    assert tokens_made(engines) - idle < LONG["max_tokens"] / 2
