"""Compressed and slim streams, read by real clients: each event is decoded before the next one exists.

The backend here makes an event only when it is told to, and it is told when the client has handed out the one before:
what waits for more bytes to decode, on either side, waits for ever, and the guard against that ends the test.
"""

import asyncio
import json
import select
import socket
import subprocess
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import brotli
import httpx
import openai
import pytest
import zstandard
from rig import HERE, MODEL, PATIENCE, Engine, Gateway, wait_for

PATH = "/v1/chat/completions"
CODINGS = ["gzip", "br", "zstd"]
WORDS = ["The ", "river, ", "\"the\" mill\n", "🌈 and ", "the baker", "."]
TURN = [{"role": "user", "content": "Write a short story about a river, a mill and a baker."}]
GREEDY = {"model": MODEL, "messages": TURN, "temperature": 0, "max_tokens": 24}
STREAM = {**GREEDY, "stream": True, "stream_options": {"include_usage": True}}


# --- A backend that makes an event when it is told to


class Steps(ThreadingHTTPServer):
    """An engine whose one answer is the words above. `step()` lets one event go."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answering)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked = []
        self.steps = threading.Semaphore(0)
        self.left = threading.Event()

    def begin(self):
        """Nobody is told anything yet."""
        self.steps = threading.Semaphore(0)
        self.left.clear()

    def step(self):
        self.steps.release()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


def events():
    """The answer, as vLLM would write it."""
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in WORDS), {}]
    for n, delta in enumerate(deltas):
        finish = "stop" if n == len(deltas) - 1 else None
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": None}
        yield {**head, "choices": [choice]}
    usage = {"prompt_tokens": 3, "completion_tokens": len(WORDS), "total_tokens": 3 + len(WORDS)}
    yield {**head, "choices": [], "usage": usage}


class Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.whole({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "test"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != PATH or not body.get("stream"):
            return self.whole({"error": {"message": "not here"}}, 404)
        steps = self.server.steps
        self.server.asked.append(dict(self.headers))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for event in [*map(json.dumps, events()), "[DONE]"]:
                self.wait(steps)
                self.chunk(f"data: {event}\n\n".encode())
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
            self.server.left.set()

    def wait(self, steps):
        """For the next step, or until the reader has left."""
        until = time.monotonic() + PATIENCE
        while not steps.acquire(timeout=0.05):
            readable, _, _ = select.select([self.connection], [], [], 0)
            if time.monotonic() > until or readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionError("nobody wants more")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def whole(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


# --- Clients: generators that give {} when the head is here, then each event when it was decoded. `coding` is what is
# --- asked for; None leaves it to the client.


def sent(coding, headers):
    return {**(headers or {}), **({"accept-encoding": coding} if coding else {})}


class Events:
    """Splits a decoded stream."""

    def __init__(self):
        self.held = b""

    def push(self, data):
        *whole, self.held = (self.held + data).split(b"\n\n")
        return [json.loads(event[6:]) for event in whole if event.startswith(b"data: {")]


def by_httpx(url, body, coding, headers=None):
    with httpx.stream("POST", url + PATH, json=body, headers=sent(coding, headers), timeout=PATIENCE) as answer:
        expect(answer.headers.get("content-encoding"), coding)
        yield {}
        found = Events()
        for data in answer.iter_bytes():
            yield from found.push(data)
        assert found.held == b""


def by_hand(url, body, coding, headers=None):
    """The raw bytes, by the codecs themselves: the answer is one frame, and ends with it."""
    with httpx.stream("POST", url + PATH, json=body, headers=sent(coding, headers), timeout=PATIENCE) as answer:
        expect(answer.headers.get("content-encoding"), coding)
        yield {}
        found = Events()
        decoder = {
            "gzip": lambda: zlib.decompressobj(31),
            "zstd": lambda: zstandard.ZstdDecompressor().decompressobj(),
            "br": brotli.Decompressor,
        }[coding]()
        decode = decoder.process if coding == "br" else decoder.decompress
        for data in answer.iter_raw():
            yield from found.push(decode(data))
        assert found.held == b""
        assert decoder.is_finished() if coding == "br" else decoder.eof
        assert not getattr(decoder, "unused_data", b"")


def by_openai(url, body, coding, headers=None):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        with client.chat.completions.create(**body, extra_headers=sent(coding, headers)) as stream:
            expect(stream.response.headers.get("content-encoding"), coding)
            yield {}
            for chunk in stream:
                yield chunk.model_dump(mode="json", exclude_unset=True)


def by_aiohttp(url, body, coding, headers=None):
    import aiohttp

    async def opened():
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE)) as session:
            async with session.post(url + PATH, json=body, headers=sent(coding, headers)) as answer:
                expect(answer.headers.get("content-encoding"), coding)
                yield {}
                found = Events()
                async for data in answer.content.iter_any():
                    for event in found.push(data):
                        yield event

    loop, stream = asyncio.new_event_loop(), opened()
    try:
        while (event := loop.run_until_complete(anext(stream, None))) is not None:
            yield event
    finally:
        loop.run_until_complete(stream.aclose())
        loop.close()


def by_curl(url, body, coding, headers=None):
    """Its `--compressed` asks for what it can decode; the field given beside it takes the place of that."""
    fields = [flag for name, value in sent(coding, headers).items() for flag in ("-H", f"{name}: {value}")]
    command = ["curl", "-sSN", "--compressed", "--max-time", str(int(PATIENCE)), "-D", "-", *fields]
    command += ["-H", "content-type: application/json", "-d", json.dumps(body), url + PATH]
    with child(command) as lines:
        told = ""
        while (line := next(lines)).strip():
            name, _, value = line.partition(":")
            told = value.strip() if name.lower() == "content-encoding" else told
        expect(told, coding)
        yield {}
        for line in lines:
            if line.startswith("data: {"):
                yield json.loads(line[6:])


def by_node(client):
    def run(url, body, coding, headers=None):
        given = [client, url, coding or "", json.dumps(body), json.dumps(headers or {})]
        with child(["node", "compress.mjs", *given]) as lines:
            yield from map(json.loads, lines)

    return run


BARE = """
import json, sys
sys.modules.update(dict.fromkeys(["brotli", "brotlicffi", "zstandard"]))
import httpx
url, body = sys.argv[1:]
with httpx.stream("POST", url, json=json.loads(body), timeout=60) as answer:
    told = answer.headers["content-encoding"]
    assert answer.request.headers["accept-encoding"] == "gzip, deflate" and told == "gzip", told
    print("{}", flush=True)
    for line in answer.iter_lines():
        if line.startswith("data: {"):
            print(line[6:], flush=True)
"""


def by_bare_httpx(url, body, coding, headers=None):
    """As it is installed without its extras."""
    assert coding is None and headers is None
    with child([sys.executable, "-c", BARE, url + PATH, json.dumps(body)]) as lines:
        yield from map(json.loads, lines)


class child:
    """A client in a process of its own: its lines, as they come."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, cwd=HERE / "node", stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def __enter__(self):
        return self.lines()

    def lines(self):
        for line in self.process.stdout:
            yield line.decode()
        told = self.process.stderr.read().decode(errors="replace")
        assert self.process.wait(timeout=PATIENCE) == 0, told

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


def expect(told, coding):
    if coding:
        assert told == coding, f"the answer's coding is {told!r}"
    else:
        assert told in CODINGS, "what it asks for by itself is enough for a coding"


CLIENTS = {
    "httpx": (by_httpx, [*CODINGS, None]),
    "httpx-bare": (by_bare_httpx, [None]),
    "codecs": (by_hand, CODINGS),
    "openai": (by_openai, [*CODINGS, None]),
    "aiohttp": (by_aiohttp, [*CODINGS, None]),
    "curl": (by_curl, [*CODINGS, None]),
    # Node before 23 has no zstd.
    "fetch": (by_node("fetch"), ["gzip", "br", None]),
    "openai-node": (by_node("openai"), ["gzip", "br", None]),
}
CASES = [
    pytest.param(client, coding, id=f"{name}-{coding or 'own'}")
    for name, (client, codings) in CLIENTS.items()
    for coding in codings
]


def said(answer):
    """What a reader takes from a stream: text, finish reasons, usage, and how often the role came."""
    choices = [choice for event in answer for choice in event.get("choices", [])]
    return {
        "text": "".join(choice["delta"].get("content") or "" for choice in choices),
        "finish": [choice["finish_reason"] for choice in choices if choice.get("finish_reason")],
        "usage": [event["usage"] for event in answer if event.get("usage")],
        "roles": sum(bool(choice["delta"].get("role")) for choice in choices),
        "ids": len({event["id"] for event in answer if event.get("id")}),
    }


# --- Each event before the next


@pytest.fixture(scope="module")
def steps():
    with Steps() as steps:
        yield steps


@pytest.fixture(scope="module")
def stepping(steps):
    with Gateway("gateway-steps", [f"{{url: '{steps.url}', engine: vllm}}"], "cache: {mode: off}\n") as gateway:
        yield gateway


def walk(steps, stream):
    """All events, each of which was made when the one before was here."""
    steps.begin()
    assert next(stream) == {}, "the head waits for no body"
    answer = []
    for _ in events():
        steps.step()
        answer.append(next(stream))
    steps.step()
    assert next(stream, None) is None
    return answer


@pytest.mark.parametrize(("client", "coding"), CASES)
def test_each_event_is_decoded_before_the_next_is_made(steps, stepping, client, coding):
    answer = walk(steps, client(stepping.url, STREAM, coding))
    assert answer == list(events())
    asked = {name.lower(): value for name, value in steps.asked[-1].items()}
    assert "accept-encoding" not in asked, "backends answer without a coding"


@pytest.mark.parametrize("coding", CODINGS)
def test_slim_events_come_as_early(steps, stepping, coding):
    slim = walk(steps, by_httpx(stepping.url, STREAM, coding, {"x-sluicegate-slim": "1"}))
    assert said(slim) == said(list(events()))
    assert all("logprobs" not in choice for event in slim for choice in event["choices"])
    assert "x-sluicegate-slim" not in {name.lower() for name in steps.asked[-1]}


@pytest.mark.parametrize("coding", CODINGS)
def test_a_client_that_leaves_frees_its_encoder(steps, stepping, coding):
    wait_for(lambda: stepping.metric("sluicegate_compression_encoders") == 0, "no encoder is at work")
    steps.begin()
    stream = by_httpx(stepping.url, STREAM, coding)
    assert next(stream) == {}
    steps.step()
    assert next(stream)
    assert stepping.metric("sluicegate_compression_encoders") == 1
    stream.close()
    wait_for(lambda: stepping.metric("sluicegate_compression_encoders") == 0, "the encoder is free again")
    assert steps.left.wait(PATIENCE), "and the backend is told"


# --- A real engine


@pytest.fixture(scope="module")
def uncached(engines):
    with Gateway("gateway-coded", [engine.url for engine in engines], "cache: {mode: off}\n") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def identity(uncached):
    """The answer without a coding."""
    with httpx.stream("POST", uncached.url + PATH, json=STREAM, headers={"accept-encoding": "identity"}, timeout=PATIENCE) as answer:
        assert "content-encoding" not in answer.headers
        found = Events()
        return [event for data in answer.iter_bytes() for event in found.push(data)]


@pytest.mark.parametrize(("client", "coding"), CASES)
def test_the_same_answer_in_every_coding(uncached, identity, client, coding):
    head, *answer = client(uncached.url, STREAM, coding)
    assert head == {} and said(identity)["text"]
    assert said(answer) == said(identity)
    assert len(answer) == len(identity)


@pytest.mark.parametrize("coding", CODINGS)
def test_plain_answers(uncached, coding):
    def ask(accept):
        answer = httpx.post(uncached.url + PATH, json=GREEDY, headers={"accept-encoding": accept}, timeout=PATIENCE)
        return answer, answer.json()["choices"]

    (coded, choices), (_, expected) = ask(coding), ask("identity")
    assert coded.headers["content-encoding"] == coding
    assert "accept-encoding" in coded.headers["vary"].lower()
    assert choices == expected


@pytest.fixture(scope="module")
def merging(engines):
    with Gateway("gateway-merging", [engine.url for engine in engines], "cache: {mode: off}\negress: {slim: true}\ncompression: {flush: 5s}\n") as gateway:
        yield gateway


@pytest.mark.parametrize("name", ["openai", "openai-node", "httpx"])
def test_slim_answers_say_the_same_to_the_sdks(uncached, merging, identity, name):
    client = CLIENTS[name][0]
    _, *slim = client(uncached.url, STREAM, "gzip", {"x-sluicegate-slim": "1"})
    assert said(slim) == said(identity)
    assert len(slim) == len(identity)
    _, *merged = client(merging.url, STREAM, "gzip")
    assert said(merged) == said(identity)
    assert len(merged) < len(identity) / 2
    _, *as_it_is = client(merging.url, STREAM, "gzip", {"x-sluicegate-slim": "0"})
    assert said(as_it_is) == said(identity)
    assert len(as_it_is) == len(identity)


def test_the_helper_of_openai_sees_the_same_in_slim_chunks(uncached, merging):
    def final(url, headers):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
            asked = {name: value for name, value in STREAM.items() if name != "stream"}
            with client.chat.completions.stream(**asked, extra_headers=headers) as stream:
                # It refuses an answer that ends at its limit, and tells what it has put together.
                with pytest.raises(openai.LengthFinishReasonError) as ended:
                    stream.get_final_completion()
        answer = ended.value.completion
        return answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage, answer.system_fingerprint

    whole = final(uncached.url, {})
    assert whole[3]
    assert final(uncached.url, {"x-sluicegate-slim": "1"}) == whole
    assert final(merging.url, {}) == whole


@pytest.fixture(scope="module")
def caching(engines):
    with Gateway("gateway-twins", [engine.url for engine in engines]) as gateway:
        yield gateway


@pytest.mark.parametrize("first", ["identity", *CODINGS])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_kept_answer_in_another_coding_than_the_first(caching, stream, first):
    body = {**(STREAM if stream else GREEDY), "max_tokens": 16, "messages": [{"role": "user", "content": f"Say {first}, {stream}."}]}

    def ask(coding):
        answer = httpx.post(caching.url + PATH, json=body, headers={"accept-encoding": coding}, timeout=PATIENCE)
        assert answer.headers.get("content-encoding", "identity") == coding
        return answer.headers["cache-status"], answer.content

    status, expected = ask(first)
    assert "fwd=miss" in status
    # Twice: the second of a coding is answered from what the first of it left.
    for coding in [*CODINGS, "identity", *CODINGS]:
        status, content = ask(coding)
        assert ";hit" in status
        assert content == expected


# --- A stream that goes on at another replica


@pytest.fixture(scope="module")
def pair(model_file):
    with Engine("coded-a") as first, Engine("coded-b") as second:
        yield {"a": first, "b": second}


@pytest.fixture(scope="module")
def resuming(pair):
    backends = [f"{{name: {name}, url: '{replica.url}'}}" for name, replica in pair.items()]
    config = "cache: {mode: off}\ndebug_headers: true\nretry: {budget: 1}\ntimeouts: {suspect: 1s}\nhealth: {interval: 250ms, timeout: 1s}\n"
    with Gateway("gateway-coded-resume", backends, config) as gateway:
        yield gateway


@pytest.mark.parametrize("coding", CODINGS)
def test_a_resumed_stream_is_one_coded_stream(pair, resuming, identity, coding):
    for replica in pair.values():
        if replica.child.poll() is not None:
            replica.start()
    wait_for(lambda: httpx.get(f"{resuming.admin}/readyz?verbose").status_code == 200, "the gateway is ready")
    before = resuming.metric("sluicegate_resumes_total")
    stream = by_hand(resuming.url, STREAM, coding)
    answer = [next(stream) for _ in range(8)]
    busy = [replica for replica in pair.values() if not replica.is_idle()]
    assert len(busy) == 1
    busy[0].kill()
    answer += stream
    assert said(answer) == said(identity)
    assert resuming.metric("sluicegate_resumes_total") == before + 1
