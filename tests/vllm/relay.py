"""A TCP relay in front of a server, which cuts the next streamed answer after so many events."""

import asyncio


class Relay:
    """`cut(n)`: the next stream through it is closed after n events, without the framing's end."""

    def __init__(self, port: int):
        self.to = port
        self.left: int | None = None
        self.cuts = 0
        self.requests: list[bytes] = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self.server.close()

    def cut(self, events: int | None) -> None:
        self.left = events

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.to)

        async def upload() -> None:
            while data := await reader.read(65536):
                self.requests.append(data)
                up_writer.write(data)
            up_writer.close()

        sending = asyncio.create_task(upload())
        try:
            await self.answers(up_reader, writer)
        finally:
            sending.cancel()
            writer.close()
            up_writer.close()

    async def answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.left is None:
                writer.write(data)
                continue
            while data:
                at = data.find(b"\n\n")
                if at < 0:
                    writer.write(data)
                    break
                if self.left == 0:
                    self.left = None
                    self.cuts += 1
                    return
                writer.write(data[: at + 2])
                data = data[at + 2 :]
                self.left -= 1
            await writer.drain()
