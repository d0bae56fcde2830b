"""Two gateways before one backend share their answers by a real Redis, which is killed, stopped and tampered with meanwhile.

The simulated backend counts what it served: a second answer that it did not compute came from the first one's.
"""

import json
import signal
import time

import httpx
import pytest
from rig import LOGS, Gateway, Redis, Sim, fetch, wait_for

TTL = 600


@pytest.fixture(scope="module")
def backend():
    with Sim("cache-redis-sim") as sim:
        yield sim


@pytest.fixture(scope="module")
def store():
    with Redis("cache-redis") as redis:
        yield redis


@pytest.fixture
def redis(store):
    """Up and empty, whatever the test before has done to it."""
    if store.child.poll() is not None:
        store.start()
    store.signal(signal.SIGCONT)
    wait_for(store.is_up, "Redis answers")
    store.ask("FLUSHALL")
    return store


def gateway(name: str, redis: Redis, backend: Sim, key: str = "one key for all gateways") -> Gateway:
    key_file = LOGS / f"{name}.key"
    key_file.write_text(key)
    cache = f"cache: {{ttl: {TTL}s, redis: '{redis.url}', key_file: '{key_file}'}}\n"
    return Gateway(name, [backend.url], cache)


@pytest.fixture
def pair(redis, backend):
    with gateway("cache-redis-a", redis, backend) as one, gateway("cache-redis-b", redis, backend) as two:
        for each in (one, two):
            wait_for(lambda each=each: is_connected(each), f"{each.name} has found Redis")
        yield one, two


def state(gate: Gateway) -> dict:
    return json.loads(fetch(f"{gate.admin}/api/v1/cache")[1])


def is_connected(gate: Gateway) -> bool:
    return state(gate)["second_tier"]["state"] == "connected"


def ask(gate: Gateway, question: str, **more) -> httpx.Response:
    body = {"model": "sim", "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 20, **more}
    answer = httpx.post(f"{gate.url}/v1/chat/completions", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer


def told(answer: httpx.Response) -> str:
    return answer.headers["cache-status"].split(",")[-1].strip()


def is_hit(answer: httpx.Response) -> bool:
    return told(answer).startswith("sluicegate;hit")


def store_first(gate: Gateway, redis: Redis, question: str, **more) -> tuple[httpx.Response, str]:
    """The answer, once it lies in Redis, and its name there."""
    before = set(redis.names())
    answer = ask(gate, question, **more)
    assert told(answer) == "sluicegate;fwd=miss;stored"
    wait_for(lambda: len(redis.names()) > len(before), "the answer is written to Redis")
    (name,) = set(redis.names()) - before
    return answer, name


def purge(gate: Gateway, query: str = "") -> dict:
    answer = httpx.delete(f"{gate.admin}/api/v1/cache{query}")
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("stream", [False, True])
def test_what_one_stored_the_other_serves(pair, redis, backend, stream):
    one, two = pair
    first, name = store_first(one, redis, f"shared, {stream=}", stream=stream)
    served = backend.served()
    second = ask(two, f"shared, {stream=}", stream=stream)
    assert is_hit(second) and second.content == first.content
    assert second.headers["content-type"] == first.headers["content-type"]
    assert backend.served() == served
    # Kept there too, from now on.
    assert is_hit(ask(two, f"shared, {stream=}", stream=stream))
    assert state(two)["second_tier"]["reads"]["hit"] == 1
    lifetime = int(redis.ask("PTTL", name))
    assert 0 < lifetime <= TTL * 1000
    assert "sim" not in name and name.startswith("sluicegate:1:")


def test_another_credential_or_key_finds_nothing(pair, redis, backend):
    one, two = pair
    body = {"model": "sim", "prompt": "whose?", "temperature": 0, "max_tokens": 5}
    for gate in pair:
        url = f"{gate.url}/v1/completions"
        answer = httpx.post(url, json=body, headers={"authorization": f"Bearer {gate.name}"}, timeout=30)
        assert not is_hit(answer)
    with gateway("cache-redis-stranger", redis, backend, "another key") as stranger:
        wait_for(lambda: is_connected(stranger), "the stranger has found Redis")
        store_first(one, redis, "of one house")
        assert not is_hit(ask(stranger, "of one house"))
        assert is_hit(ask(two, "of one house"))


def test_damaged_and_swapped_values_are_misses(pair, redis, backend):
    one, two = pair
    first, a = store_first(one, redis, "the first question")
    other, b = store_first(one, redis, "the second question, another one")
    redis.ask("RENAME", a, "aside")
    redis.ask("RENAME", b, a)
    redis.ask("RENAME", "aside", b)
    swapped = ask(two, "the first question")
    assert not is_hit(swapped)
    assert swapped.json()["choices"] == first.json()["choices"]
    redis.ask("SETRANGE", b, "200", "x")
    damaged = ask(two, "the second question, another one")
    assert not is_hit(damaged)
    assert damaged.json()["choices"] == other.json()["choices"]
    assert state(two)["second_tier"]["reads"]["refused"] == 2


def test_requests_go_on_while_it_is_killed_and_it_is_used_again(pair, redis, backend):
    one, two = pair
    store_first(one, redis, "before")
    redis.kill()
    for gate in pair:
        wait_for(lambda gate=gate: not is_connected(gate), f"{gate.name} has noticed")
        begun = time.monotonic()
        for n in range(20):
            assert not is_hit(ask(gate, f"{gate.name} while it is gone, {n}"))
        assert is_hit(ask(gate, f"{gate.name} while it is gone, 0")), "the own memory is there"
        print(f"\n20 answers without Redis: {time.monotonic() - begun:.2f} s")
    assert one.metric("sluicegate_cache_remote_connected") == 0
    redis.start()
    for gate in pair:
        wait_for(lambda gate=gate: is_connected(gate), f"{gate.name} has found it again")
    assert one.metric("sluicegate_cache_remote_connected") == 1
    store_first(one, redis, "after")
    assert is_hit(ask(two, "after"))


def test_a_redis_that_hangs_is_left_alone(pair, redis, backend):
    one, two = pair
    store_first(one, redis, "before it hangs")
    redis.signal(signal.SIGSTOP)
    for n in range(10):
        assert not is_hit(ask(two, f"while it hangs, {n}"))
    reads = state(two)["second_tier"]["reads"]
    # The first few waited for it in vain, the others did not ask.
    assert reads["late"] <= 6 and reads["away"] >= 4, reads
    assert not is_connected(two)
    redis.signal(signal.SIGCONT)
    wait_for(lambda: is_connected(two), "it is found again")
    assert is_hit(ask(two, "before it hangs"))


def test_a_purge_reaches_it(pair, redis, backend):
    one, two = pair
    for n in range(30):
        ask(one, f"to be forgotten, {n}")
    wait_for(lambda: len(redis.names()) == 30, "all are written")
    assert purge(one, "?model=another")["purged"] == 0
    assert len(redis.names()) == 30
    assert purge(one, "?model=sim")["purged"] == 30
    wait_for(lambda: redis.names() == [], "Redis has forgotten them")
    assert not is_hit(ask(two, "to be forgotten, 3"))
    wait_for(lambda: len(redis.names()) == 1, "the new one is written")

    # Asked for while Redis is away, done once it is back; its answers are no hits in between.
    redis.signal(signal.SIGSTOP)
    for n in range(10):
        ask(one, f"while it hangs, {n}")
    wait_for(lambda: not is_connected(one), "the gateway has noticed")
    purge(one)
    redis.signal(signal.SIGCONT)
    wait_for(lambda: is_connected(one), "it is found again")
    assert redis.names() == []
    assert not is_hit(ask(one, "to be forgotten, 3"))


def test_more_than_waits_is_not_written_and_nobody_waits(pair, redis, backend):
    one, _ = pair
    redis.ask("CONFIG", "SET", "maxmemory", "1")
    try:
        for n in range(5):
            assert told(ask(one, f"no room, {n}")) == "sluicegate;fwd=miss;stored"
        wait_for(lambda: state(one)["second_tier"]["writes"]["failed"] == 5, "each was refused")
        assert is_connected(one)
    finally:
        redis.ask("CONFIG", "SET", "maxmemory", "0")
