"""`Upgrade: websocket` is tunnelled: the `websockets` library talks through the gateway to a simulated `/v1/realtime`."""

import asyncio

import pytest
import websockets
from rig import Gateway, Sim


@pytest.fixture(scope="module")
def realtime():
    with Sim("sim-websocket") as sim, Gateway("gateway-websocket", [sim.url]) as gateway:
        yield f"ws://127.0.0.1:{gateway.port}/v1/realtime"


def test_messages_come_back_as_sent(realtime):
    async def talk():
        async with websockets.connect(realtime, max_size=None, compression=None) as socket:
            for message in ("hello", "Zürich 🌍", b"\x00\xff\x7f", b"", "x" * 300_000):
                await socket.send(message)
                assert await socket.recv() == message
            await (await socket.ping())

    asyncio.run(asyncio.wait_for(talk(), 60))


def test_many_at_once_and_closing_is_passed_on(realtime):
    async def one(number: int):
        async with websockets.connect(realtime, compression=None) as socket:
            for round in range(20):
                await socket.send(f"{number}:{round}")
                assert await socket.recv() == f"{number}:{round}"
        assert socket.close_code == 1000

    async def all_of_them():
        await asyncio.gather(*(one(number) for number in range(50)))

    asyncio.run(asyncio.wait_for(all_of_them(), 60))
