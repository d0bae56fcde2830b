"""What was computed once is not computed again: the engines' own token counters say so."""

import concurrent.futures
import http.client
import itertools
import json

import openai
import pytest
from compare import plain
from rig import MODEL, Gateway, wait_for

GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 12}
numbers = itertools.count()


@pytest.fixture(scope="module")
def gateway(engines):
    with Gateway("gateway-cache", [engine.url for engine in engines]) as gateway:
        yield gateway


@pytest.fixture
def ask():
    """A request of this test alone."""
    return {**GREEDY, "messages": [{"role": "user", "content": f"Count up from {next(numbers)}0."}]}


class Spent:
    """Tokens that the engines computed since it was made."""

    def __init__(self, engines):
        self.engines = engines
        self.before = self.total()

    def total(self) -> float:
        wait_for(lambda: all(engine.is_idle() for engine in self.engines), "the engines are idle")
        return sum(engine.counter("tokens_predicted_total") for engine in self.engines)

    def tokens(self) -> float:
        return self.total() - self.before


def post(gateway, body, headers=None):
    """Status, headers and the exact bytes of an answer; `body` is a value, or text that is sent as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=120)
    try:
        text = body if isinstance(body, str) else json.dumps(body)
        sent = {"content-type": "application/json", **(headers or {})}
        connection.request("POST", "/v1/chat/completions", text.encode(), sent)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def fate(headers) -> str:
    """What our member of `Cache-Status` says, without the seconds."""
    return headers["cache-status"].split(", ")[-1].removeprefix("sluicegate;").split(";ttl=")[0]


def content(body: bytes) -> str:
    """The text of a plain or a streamed answer."""
    if not body.startswith(b"data:"):
        return json.loads(body)["choices"][0]["message"]["content"]
    events = [line[6:] for line in body.decode().splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_repeat_costs_the_engine_nothing(engines, gateway, ask, stream):
    first = post(gateway, {**ask, "stream": stream})
    spent = Spent(engines)
    second = post(gateway, {**ask, "stream": stream})
    assert (first[0], second[0]) == (200, 200)
    assert (fate(first[1]), fate(second[1])) == ("fwd=miss;stored", "hit")
    assert second[2] == first[2], "byte for byte"
    assert int(second[1]["age"]) >= 0
    assert spent.tokens() == 0


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_repeat_by_the_openai_client(engines, gateway, ask, stream):
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=60)

    def create():
        answer = client.chat.completions.create(stream=stream, **ask)
        return plain(list(answer) if stream else answer)

    first = create()
    spent = Spent(engines)
    assert create() == first
    assert spent.tokens() == 0


def test_the_same_request_in_other_words_hits(engines, gateway, ask):
    post(gateway, ask)
    prompt = ask["messages"][0]["content"]
    others = [
        json.dumps(dict(reversed(ask.items()))),
        json.dumps(ask, indent=3),
        json.dumps(ask).replace("Count", "\\u0043ount"),
        json.dumps({**ask, "user": "somebody", "metadata": {"trace": "1"}}),
        json.dumps({**ask, "messages": [{"content": prompt, "role": "user"}]}),
    ]
    spent = Spent(engines)
    assert [fate(post(gateway, other)[1]) for other in others] == ["hit"] * len(others)
    assert spent.tokens() == 0


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 11},
        {"max_tokens": 12.0},
        {"temperature": 0.0},
        {"top_p": 0.5},
        {"seed": 7},
        {"stop": ["\n"]},
        {"presence_penalty": 0.5},
        {"logit_bias": [[30904, False]]},
        {"messages": [{"role": "user", "content": "Count up from ten. "}]},
        {"a_field_of_tomorrow": 1},
    ],
    ids=lambda change: "-".join(change),
)
def test_any_changed_field_misses(gateway, ask, change):
    post(gateway, ask)
    assert fate(post(gateway, ask)[1]) == "hit", "the request itself is one that hits"
    assert fate(post(gateway, {**ask, **change})[1]).startswith("fwd=miss")


SHAPES = {"plain": [False] * 16, "stream": [True] * 16, "mixed": [n % 2 == 0 for n in range(16)], "plain-first": [n > 0 for n in range(16)]}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
def test_sixteen_at_once_cost_the_tokens_of_one(engines, gateway, ask, shapes):
    spent = Spent(engines)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda stream: post(gateway, {**ask, "stream": stream}), shapes))
    assert [answer[0] for answer in answers] == [200] * 16
    assert spent.tokens() == ask["max_tokens"]
    assert len({content(answer[2]) for answer in answers}) == 1
    for stream in (False, True):
        assert len({answer[2] for answer, of in zip(answers, shapes) if of == stream}) <= 1, "byte for byte"
    assert sum(fate(answer[1]).startswith("fwd=miss;stored") for answer in answers) == 1


def test_a_leader_that_hangs_up_changes_nothing_for_the_others(engines, gateway, ask):
    long = {**ask, "max_tokens": 96, "stream": True}
    spent = Spent(engines)
    leader = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=120)
    leader.request("POST", "/v1/chat/completions", json.dumps(long), {"content-type": "application/json"})
    assert leader.getresponse().read(1), "it leads"
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        followers = [pool.submit(post, gateway, long) for _ in range(3)]
        wait_for(lambda: gateway.metric("sluicegate_requests_in_flight") >= 4, "all of them are under way")
        leader.close()
        answers = [follower.result() for follower in followers]
    assert {fate(answer[1]) for answer in answers} == {"fwd=miss;collapsed"}
    assert all(answer[2].endswith(b"data: [DONE]\n\n") for answer in answers)
    assert spent.tokens() <= 96
    assert fate(post(gateway, long)[1]) == "hit"


def test_another_key_never_hits(gateway, ask):
    mine, theirs = {"authorization": "Bearer mine"}, {"authorization": "Bearer theirs"}
    post(gateway, ask, mine)
    assert fate(post(gateway, ask, mine)[1]) == "hit"
    for other in (theirs, {}, {"x-api-key": "mine"}, {**mine, "cookie": "session=1"}):
        assert fate(post(gateway, ask, other)[1]).startswith("fwd=miss")


def test_a_sampled_request_is_never_shared(engines, gateway, ask):
    sampled = {key: value for key, value in ask.items() if key != "temperature"}
    spent = Spent(engines)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: post(gateway, sampled), range(4)))
    answers.append(post(gateway, sampled))
    assert {fate(answer[1]) for answer in answers} == {"fwd=bypass;detail=sampled"}
    assert spent.tokens() > ask["max_tokens"]
