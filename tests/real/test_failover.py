"""One of two replicas is killed, stopped, restarted, made to flap, under load. Whoever has seen no byte sees no failure.

A stream that was being read when its replica died ends in an honest error event; those are counted apart, and every
one of them must have had its replica killed or stopped.
"""

import asyncio
import signal

import pytest
from load import Load
from rig import Engine, Gateway, wait_for

# The shipped defaults, but quicker to suspect: the tests wait for what these durations cause. Nothing is kept, so that
# every request needs a replica.
QUICK = """
cache: {mode: off}
timeouts: {suspect: 1s}
health: {interval: 250ms, timeout: 3s}
"""


@pytest.fixture(scope="module")
def pair(model_file):
    with Engine("failover-a") as first, Engine("failover-b") as second:
        yield first, second


@pytest.fixture
def replicas(pair):
    """Both up and idle at the start of each test, whatever the one before has done to them."""
    for replica in pair:
        if replica.child.poll() is not None or not replica.is_up():
            replica.kill()
            replica.start()
        wait_for(replica.is_idle, f"{replica.name} is idle")
    return pair


@pytest.fixture
def fronted(replicas):
    with Gateway("gateway-failover", [replica.url for replica in replicas], QUICK) as gateway:
        yield gateway


async def answers(replica: Engine) -> None:
    """Until the replica has made a token more than it had."""
    before = max(await asyncio.to_thread(replica.counter, "tokens_predicted_total"), 0)
    await asyncio.to_thread(
        wait_for,
        lambda: replica.counter("tokens_predicted_total") > before,
        f"{replica.name} is given work again",
    )


def judge(load: Load, most_cut: int) -> None:
    """No request without bytes sent failed; no more streams were cut than the harmed replica can have had open."""
    count = load.count()
    print(f"\n{dict(count)}")
    assert load.bad() == [], "\n" + "\n".join(map(str, load.bad()))
    assert count["cut"] <= most_cut, count
    assert count["whole"] > 0


def test_killed_and_restarted(replicas, fronted):
    async def run() -> Load:
        async with Load(fronted.url) as load:
            await load.more(20)
            replicas[0].kill()
            await load.more(40)
            replicas[0].spawn()
            await asyncio.to_thread(replicas[0].wait_up)
            await answers(replicas[0])
            await load.more(20)
        return load

    # Half of the 20 callers stream.
    judge(asyncio.run(run()), most_cut=10)


def test_stopped_and_continued(replicas, fronted):
    """SIGSTOP: the connections stay open and nothing comes. Requests on it are taken elsewhere."""

    async def run() -> Load:
        async with Load(fronted.url) as load:
            await load.more(20)
            replicas[0].signal(signal.SIGSTOP)
            try:
                # More than the callers that may hang on it: the others alone could not bring all of these.
                await load.more(60)
            finally:
                replicas[0].signal(signal.SIGCONT)
            await answers(replicas[0])
            await load.more(20)
        return load

    judge(asyncio.run(run()), most_cut=10)


def test_flapping(replicas, fronted):
    """Three times down and up."""

    async def run() -> Load:
        async with Load(fronted.url) as load:
            for _ in range(3):
                await load.more(10)
                replicas[0].kill()
                await load.more(10)
                replicas[0].spawn()
                await asyncio.to_thread(replicas[0].wait_up)
        return load

    judge(asyncio.run(run()), most_cut=30)


def test_both_in_turn(replicas, fronted):
    """First one is replaced, then the other: a rolling restart."""

    async def run() -> Load:
        async with Load(fronted.url) as load:
            for replica in replicas:
                await load.more(10)
                replica.kill()
                await load.more(10)
                replica.spawn()
                await asyncio.to_thread(replica.wait_up)
                await answers(replica)
        return load

    judge(asyncio.run(run()), most_cut=20)
