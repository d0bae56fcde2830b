"""A replica dies, hangs, or gets its notice while it answers; another one goes on, and the client cannot tell.

Two llama.cpp replicas in float32: a greedy answer is the same on both, so what the client gets must be equal to the
run that nothing happened to: text, finish, usage, one id. `SLUICEGATE_TENTHS=all` cuts at every tenth of the answer.
"""

import json
import os
import signal
import subprocess
import threading
import urllib.request
from datetime import UTC, datetime, timedelta

import anthropic
import openai
import pytest
from rig import HERE, MODEL, PATIENCE, Engine, Gateway, wait_for

TOKENS = 40
PROMPT = "Write a short story about a river, a mill and a baker, with a dialogue."
TENTHS = range(1, 10) if os.environ.get("SLUICEGATE_TENTHS") == "all" else [1, 3, 5, 7, 9]
CONFIG = """
cache: {mode: off}
debug_headers: true
retry: {budget: 1}
timeouts: {suspect: 1s}
health: {interval: 250ms, timeout: 1s}
"""
TURN = [{"role": "user", "content": PROMPT}]
BODIES = {
    "/v1/chat/completions": {"messages": TURN, "max_tokens": TOKENS, "stream_options": {"include_usage": True}},
    "/v1/completions": {"prompt": "Once upon a time there was a river, and by the river stood", "max_tokens": TOKENS, "stream_options": {"include_usage": True}},
    "/v1/responses": {"input": PROMPT, "max_output_tokens": TOKENS, "store": False},
    "/v1/messages": {"messages": TURN, "max_tokens": TOKENS},
}


@pytest.fixture(scope="module")
def pair(model_file):
    with Engine("resume-a") as first, Engine("resume-b") as second:
        yield {"a": first, "b": second}


@pytest.fixture(scope="module")
def gateway(pair):
    backends = [f"{{name: {name}, url: '{replica.url}'}}" for name, replica in pair.items()]
    with Gateway("gateway-resume", backends, CONFIG) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def both_well(pair, gateway):
    """Two idle replicas before each test, whatever the one before has done to them."""
    for name, replica in pair.items():
        if replica.child.poll() is None:
            replica.signal(signal.SIGCONT)
        if replica.child.poll() is not None:
            replica.start()
        wait_for(replica.is_idle, f"{replica.name} is idle")
        order(gateway, f"/api/v1/backends/{name}/undrain")

    def well() -> bool:
        # What failed under calls is tried by a call before it is well again.
        body = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 1}).encode()
        request = urllib.request.Request(f"{gateway.url}/v1/completions", body, {"content-type": "application/json"})
        urllib.request.urlopen(request, timeout=PATIENCE).close()
        with urllib.request.urlopen(f"{gateway.admin}/api/v1/backends", timeout=5) as answer:
            return all(backend["state"] == "healthy" for backend in json.load(answer)["backends"])

    wait_for(well, "both backends are healthy")


def order(gateway: Gateway, path: str, body: dict | None = None) -> None:
    """POST to the admin plane."""
    data = json.dumps(body).encode() if body is not None else b""
    request = urllib.request.Request(f"{gateway.admin}{path}", data, {"content-type": "application/json"}, method="POST")
    urllib.request.urlopen(request, timeout=5).close()


def kill(_gateway: Gateway, _name: str, replica: Engine) -> None:
    replica.kill()


def hang(_gateway: Gateway, _name: str, replica: Engine) -> None:
    replica.signal(signal.SIGSTOP)


def notice(gateway: Gateway, name: str, _replica: Engine) -> None:
    """Too short for anything but to leave at once."""
    goes = datetime.now(UTC) + timedelta(seconds=3)
    body = {"action": "terminate", "time": goes.strftime("%Y-%m-%dT%H:%M:%SZ")}
    order(gateway, f"/api/v1/backends/{name}/interruption", body)


BLOWS = {"kill": kill, "hang": hang, "notice": notice}


class Answer:
    """A raw stream, read event by event."""

    def __init__(self, gateway: Gateway, path: str):
        body = {"model": MODEL, "temperature": 0, "stream": True, **BODIES[path]}
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{gateway.url}{path}", json.dumps(body).encode(), headers)
        self.path = path
        self.http = urllib.request.urlopen(request, timeout=PATIENCE)
        self.backend = self.http.headers["x-sluicegate-backend"]
        self.events: list[dict] = []
        self.names: list[str] = []
        self.ended = False

    def event(self) -> dict | None:
        """The next one; None at the end."""
        for line in self.http:
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                self.names.append(value)
            if field == "data":
                self.ended |= value == "[DONE]"
                self.events.append({} if value == "[DONE]" else json.loads(value))
                return self.events[-1]
        return None

    def text_of(self, event: dict) -> str:
        if self.path == "/v1/chat/completions":
            return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", []))
        if self.path == "/v1/completions":
            return "".join(choice["text"] for choice in event.get("choices", []))
        if self.path == "/v1/responses":
            return event["delta"] if event.get("type") == "response.output_text.delta" else ""
        return event.get("delta", {}).get("text", "")

    def until(self, pieces: int) -> None:
        """Reads so many pieces of text."""
        while pieces > 0:
            event = self.event()
            assert event is not None, "it ended before it was cut"
            pieces -= bool(self.text_of(event))

    def finish(self) -> dict:
        """Reads to the end; all of the answer that must be equal."""
        while self.event() is not None:
            pass
        text = "".join(map(self.text_of, self.events))
        if self.path in ("/v1/chat/completions", "/v1/completions"):
            chunks = [event for event in self.events if event]
            finishes = [c["finish_reason"] for e in chunks for c in e["choices"] if c["finish_reason"]]
            usages = [counts(e["usage"], "prompt_tokens", "completion_tokens") for e in chunks if e.get("usage")]
            assert self.ended
            # `created` moves with the clock: this engine writes it anew in each event.
            assert len({(e["id"], e["model"], e["object"]) for e in chunks}) == 1
            assert sum("role" in c.get("delta", {}) for e in chunks for c in e["choices"]) <= 1
            return {"text": text, "finish": finishes, "usage": usages}
        if self.path == "/v1/responses":
            last = self.events[-1]
            numbers = [e["sequence_number"] for e in self.events if "sequence_number" in e]
            assert numbers == sorted(set(numbers))
            assert len({e["response"]["id"] for e in self.events if "response" in e}) == 1
            assert len({e["item_id"] for e in self.events if "item_id" in e}) == 1
            whole = last["response"]
            said = whole["output"][0]["content"][0]["text"]
            usage = counts(whole["usage"], "input_tokens", "output_tokens")
            # At the limit this engine says `completed`; who goes on for it says `incomplete`, as OpenAI does.
            assert last["type"] in ("response.completed", "response.incomplete")
            return {"text": text, "said": said, "usage": usage}
        assert self.names[-1] == "message_stop"
        delta = self.events[-2]
        return {"text": text, "finish": delta["delta"], "output": delta["usage"]["output_tokens"], "order": ordered(self.names)}


def counts(usage: dict, *names: str) -> tuple:
    return tuple(usage[name] for name in names)


def ordered(names: list[str]) -> list[str]:
    """Names of events, those in a row once."""
    return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]


@pytest.fixture(scope="module")
def uncut(gateway):
    """What nothing happened to."""
    return {path: Answer(gateway, path).finish() for path in BODIES}


def test_the_answers_are_long_enough_to_be_cut(uncut):
    for path, answer in uncut.items():
        assert len(answer["text"]) > TOKENS, (path, answer)


@pytest.mark.parametrize("tenth", TENTHS)
@pytest.mark.parametrize("blow", BLOWS)
def test_raw(pair, gateway, uncut, blow, tenth):
    """One stream of each dialect at once; the replica of the first is struck when all have come so far."""
    answers = [Answer(gateway, path) for path in BODIES]
    for answer in answers:
        answer.until(TOKENS * tenth // 10)
    name = answers[0].backend
    struck = [answer for answer in answers if answer.backend == name]
    BLOWS[blow](gateway, name, pair[name])
    results: dict[str, dict] = {}
    threads = [threading.Thread(target=lambda a=a: results.__setitem__(a.path, a.finish())) for a in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == uncut
    print(f"\n{blow} at {tenth}/10: {len(struck)} streams went on elsewhere")


def strike_soon(pair, gateway, blow: str) -> None:
    """Strikes the replica that is busy."""
    busy = [name for name, replica in pair.items() if replica.counter("requests_processing") > 0]
    assert len(busy) == 1, busy
    BLOWS[blow](gateway, busy[0], pair[busy[0]])


@pytest.mark.parametrize("blow", BLOWS)
def test_openai_chat(pair, gateway, uncut, blow):
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
    options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": TOKENS, "temperature": 0}
    text, finish, usage = "", None, None
    for at, chunk in enumerate(client.chat.completions.create(model=MODEL, messages=TURN, **options)):
        if at == 5:
            strike_soon(pair, gateway, blow)
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    right = uncut["/v1/chat/completions"]
    assert {"text": text, "finish": [finish], "usage": [(usage.prompt_tokens, usage.completion_tokens)]} == right


@pytest.mark.parametrize("blow", BLOWS)
def test_openai_responses(pair, gateway, uncut, blow):
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
    options = {"max_output_tokens": TOKENS, "temperature": 0, "store": False}
    # Not the library's helper: it wants places in the output, which this engine does not tell.
    deltas, whole = [], None
    for event in client.responses.create(model=MODEL, input=PROMPT, stream=True, **options):
        if event.type == "response.output_text.delta":
            deltas.append(event.delta)
            if len(deltas) == 5:
                strike_soon(pair, gateway, blow)
        if event.type in ("response.completed", "response.incomplete"):
            whole = event.response
    right = uncut["/v1/responses"]
    assert ("".join(deltas), whole.output_text) == (right["text"], right["text"])
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == right["usage"]


@pytest.mark.parametrize("blow", BLOWS)
def test_anthropic(pair, gateway, uncut, blow):
    client = anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0, timeout=PATIENCE)
    extra = {"temperature": 0}
    with client.messages.stream(model=MODEL, messages=TURN, max_tokens=TOKENS, extra_body=extra) as stream:
        for at, _ in enumerate(stream.text_stream):
            if at == 5:
                strike_soon(pair, gateway, blow)
        message = stream.get_final_message()
    right = uncut["/v1/messages"]
    assert (message.content[0].text, message.stop_reason) == (right["text"], right["finish"]["stop_reason"])
    assert message.usage.output_tokens == right["output"]


@pytest.mark.parametrize("blow", BLOWS)
def test_vercel(pair, gateway, uncut, blow):
    command = ["node", "stream.mjs", gateway.url, MODEL, PROMPT, str(TOKENS)]
    with subprocess.Popen(command, cwd=HERE / "node", stdout=subprocess.PIPE, text=True) as client:
        lines = []
        for at, line in enumerate(client.stdout):
            if at == 5:
                strike_soon(pair, gateway, blow)
            lines.append(json.loads(line))
    assert client.returncode == 0
    end = lines.pop()
    right = uncut["/v1/chat/completions"]
    assert "".join(lines) == right["text"]
    assert (end["finish"], [tuple(end["usage"])]) == (right["finish"][0], right["usage"])


def test_it_was_told(gateway):
    """All of that is counted."""
    assert gateway.metric("sluicegate_resumes_total") > 0
    assert gateway.metric("sluicegate_panics_total") == 0
