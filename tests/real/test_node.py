"""`openai` and `ai` (with `@ai-sdk/openai-compatible`) on Node, through the gateway as directly."""

import json
import subprocess

import pytest
from compare import plain
from rig import HERE, MODEL

CASES = [
    "openai_chat",
    "openai_stream",
    "openai_stream_helper",
    "openai_responses",
    "openai_bad_request",
    "ai_generate",
    "ai_stream",
]


def run_clients(url: str) -> dict:
    command = ["node", "clients.mjs", url, MODEL]
    done = subprocess.run(command, cwd=HERE / "node", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def both(direct, gateway):
    return run_clients(gateway.url), run_clients(direct)


def test_every_case_is_compared(both):
    assert list(both[0]) == CASES


@pytest.mark.parametrize("case", CASES)
def test_node(both, case):
    through, directly = both
    assert through[case]
    assert plain(through[case]) == plain(directly[case])
