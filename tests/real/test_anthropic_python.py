"""The `anthropic` Python library through the gateway gives what it gives directly."""

import anthropic
import pytest
from compare import plain
from rig import MODEL

ASK = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello in French."}]}
# The library has no parameter of this name any more; engines take the member.
GREEDY = {"temperature": 0}
TWO_ENDS = [{"role": "user", "content": "Hi."}, *[{"role": "assistant", "content": "Ho."}] * 2]


def client(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60)


def test_messages(direct, gateway):
    def ask(url):
        return plain(client(url).messages.create(max_tokens=6, extra_body=GREEDY, system="Be brief.", **ASK))

    through = ask(gateway.url)
    assert through["content"][0]["text"]
    assert through == ask(direct)


def test_messages_stream(direct, gateway):
    def events(url):
        with client(url).messages.stream(max_tokens=6, extra_body=GREEDY, **ASK) as stream:
            return [plain(event) for event in stream]

    through = events(gateway.url)
    assert [through[0]["type"], through[-1]["type"]] == ["message_start", "message_stop"]
    assert through == events(direct)


def test_count_tokens(direct, gateway):
    counted = client(gateway.url).messages.count_tokens(**ASK).input_tokens
    assert counted > 0
    assert counted == client(direct).messages.count_tokens(**ASK).input_tokens


def test_unknown_model_in_the_shape_of_this_api(gateway):
    with pytest.raises(anthropic.NotFoundError) as refused:
        client(gateway.url).messages.create(**{**ASK, "model": "no-such-model"}, max_tokens=4)
    assert refused.value.body["type"] == "error"
    assert refused.value.body["error"]["type"] == "not_found_error"
    assert MODEL in refused.value.body["error"]["message"]


def test_errors_of_the_engine_are_its_own(direct, gateway):
    def refusal(url):
        with pytest.raises(anthropic.APIStatusError) as refused:
            # The gateway leaves it to the engine, which cannot go on from two of the same role.
            client(url).messages.create(**{**ASK, "messages": TWO_ENDS}, max_tokens=4)
        return type(refused.value), refused.value.status_code, refused.value.body

    assert refusal(gateway.url) == refusal(direct)
