"""The `openai` Python library through the gateway gives what it gives directly."""

import asyncio

import openai
import pytest
from compare import plain, text_of_chat
from rig import MODEL

ASK = [{"role": "user", "content": "Say hello in French."}]
# Greedy: two replicas in float32 give the same tokens.
GREEDY = {"model": MODEL, "temperature": 0, "seed": 1}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]},
    },
}


def client(url: str) -> openai.OpenAI:
    # No retries of the client's own: what fails shall be seen.
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def chat(url: str, **more):
    return plain(client(url).chat.completions.create(messages=ASK, **GREEDY, **more))


def chat_stream(url: str, **more):
    return plain(list(client(url).chat.completions.create(messages=ASK, stream=True, **GREEDY, **more)))


def test_chat(direct, gateway):
    answer = chat(gateway.url, max_tokens=8)
    assert answer["choices"][0]["message"]["content"]
    assert answer == chat(direct, max_tokens=8)


def test_members_the_gateway_does_not_know(direct, gateway):
    """Vendor fields reach the engine: this one forbids a token, and so changes the answer."""
    fields = {"logit_bias": [[30904, False]], "an_unknown_field": {"of": ["any", None, 1.50]}}
    changed = chat(gateway.url, max_tokens=6, extra_body=fields)
    assert changed == chat(direct, max_tokens=6, extra_body=fields)
    assert changed != chat(gateway.url, max_tokens=6)


def test_chat_async(direct, gateway):
    async def both(url):
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as asynchronous:
            whole = await asynchronous.chat.completions.create(messages=ASK, max_tokens=4, **GREEDY)
            stream = await asynchronous.chat.completions.create(messages=ASK, max_tokens=4, stream=True, **GREEDY)
            return plain(whole), plain([chunk async for chunk in stream])

    assert asyncio.run(both(gateway.url)) == asyncio.run(both(direct))


def test_chat_stream(direct, gateway):
    through = chat_stream(gateway.url, max_tokens=8)
    assert text_of_chat(through)
    assert through[-1]["choices"][0]["finish_reason"] == "length"
    assert through == chat_stream(direct, max_tokens=8)


def test_chat_stream_with_usage(direct, gateway):
    through = chat_stream(gateway.url, max_tokens=4, stream_options={"include_usage": True})
    assert through[-1]["usage"]["completion_tokens"] == 4
    assert through == chat_stream(direct, max_tokens=4, stream_options={"include_usage": True})


def test_stream_that_did_not_ask_for_usage_sees_none(gateway):
    assert all("usage" not in chunk or chunk["usage"] is None for chunk in chat_stream(gateway.url, max_tokens=3))


@pytest.mark.parametrize("form", [chat, chat_stream], ids=["whole", "stream"])
def test_tools(direct, gateway, form):
    """What a small model makes of a tool is its own affair; it must be the same."""
    assert form(gateway.url, max_tokens=8, tools=[TOOL]) == form(direct, max_tokens=8, tools=[TOOL])


@pytest.mark.parametrize("form", [chat, chat_stream], ids=["whole", "stream"])
def test_json_schema(direct, gateway, form):
    asked = {"max_tokens": 12, "response_format": SCHEMA}
    through = form(gateway.url, **asked)
    assert through == form(direct, **asked)


@pytest.mark.parametrize("form", [chat, chat_stream], ids=["whole", "stream"])
def test_logprobs(direct, gateway, form):
    asked = {"max_tokens": 3, "logprobs": True, "top_logprobs": 2}
    through = form(gateway.url, **asked)
    chunks = through if isinstance(through, list) else [through]
    told = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice.get("logprobs")]
    assert len(told[0]["content"][0]["top_logprobs"]) == 2
    assert through == form(direct, **asked)


@pytest.mark.parametrize("form", [chat, chat_stream], ids=["whole", "stream"])
def test_two_choices(direct, gateway, form):
    def by_choice(answer):
        # The engine runs the two side by side: the order between them is its own, the order within each is not.
        chunks = answer if isinstance(answer, list) else [answer]
        return [[choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == n] for n in (0, 1)]

    through = by_choice(form(gateway.url, max_tokens=4, n=2))
    assert all(through)
    assert through == by_choice(form(direct, max_tokens=4, n=2))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_legacy_completions(direct, gateway, stream):
    def complete(url):
        answer = client(url).completions.create(prompt="One, two, three,", max_tokens=6, stream=stream, **GREEDY)
        return plain(list(answer) if stream else answer)

    assert complete(gateway.url) == complete(direct)


def respond(url: str, **more):
    asked = {"model": MODEL, "input": "Say hello in French.", "max_output_tokens": 6, "temperature": 0, **more}
    answer = client(url).responses.create(**asked)
    return plain(list(answer) if more.get("stream") else answer)


def test_responses(direct, gateway):
    through = respond(gateway.url)
    assert through["output"][0]["content"][0]["text"]
    assert through == respond(direct)


def test_responses_stream(direct, gateway):
    through = respond(gateway.url, stream=True)
    assert through[-1]["type"] == "response.completed"
    assert through == respond(direct, stream=True)


def test_models_are_listed_once(direct, gateway):
    """Two replicas of one model are one model."""
    assert [model.id for model in client(gateway.url).models.list()] == [MODEL]
    assert client(gateway.url).models.retrieve(MODEL).id == MODEL


def test_unknown_model(gateway):
    """The engine would answer with the model it has; the gateway knows every backend's list and says so."""
    with pytest.raises(openai.NotFoundError) as refused:
        client(gateway.url).chat.completions.create(model="no-such-model", messages=ASK)
    assert refused.value.code == "model_not_found"
    assert refused.value.param == "model"
    assert MODEL in refused.value.message, "the message names the models that exist"


def refusal(url: str, call):
    with pytest.raises(openai.APIStatusError) as refused:
        call(client(url))
    return type(refused.value), refused.value.status_code, refused.value.body


@pytest.mark.parametrize(
    "call",
    [
        # What no engine takes is refused by the gateway (test_validation.py); this one is llama.cpp's own matter.
        lambda to: to.chat.completions.create(model=MODEL, messages=ASK, extra_body={"top_logprobs": 2}),
        lambda to: to.chat.completions.create(model=MODEL, messages=ASK, stream=True, extra_body={"top_logprobs": "x"}),
        lambda to: to.embeddings.create(model=MODEL, input="text", encoding_format="float"),
        lambda to: to.get("/no/such/path", cast_to=str),
    ],
    ids=["messages", "stream", "embeddings", "path"],
)
def test_errors_of_the_engine_are_its_own(direct, gateway, call):
    assert refusal(gateway.url, call) == refusal(direct, call)
