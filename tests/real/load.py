"""A bounded load of short completions that keeps count of how each one ended."""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field

import httpx
from rig import MODEL, PATIENCE


@dataclass
class Ending:
    """How one request ended, as its client saw it.

    kind: `whole`: all of the answer · `refused`: an error, or nothing, before any byte of the answer · `cut`: some of the
    answer, then an error event, no `[DONE]` · `lied`: some of it and then an end, clean or not, without a word.
    """

    kind: str
    stream: bool
    why: str = ""


@dataclass
class Load:
    """`clients` callers, each asking again when it was answered; every other request is a stream.

    Used as `async with`; leaving it lets the requests that run end.
    """

    url: str
    clients: int = 20
    model: str = MODEL
    tokens: int = 2
    endings: list[Ending] = field(default_factory=list)

    async def __aenter__(self):
        # HTTP/1.1 with connections kept: what an SDK does.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.clients)
        self.http = httpx.AsyncClient(timeout=PATIENCE * 2, limits=limits)
        self.stopping = False
        self.changed = asyncio.Condition()
        self.callers = [asyncio.create_task(self.call_again(number)) for number in range(self.clients)]
        return self

    async def __aexit__(self, *_):
        self.stopping = True
        await asyncio.gather(*self.callers)
        await self.http.aclose()

    async def call_again(self, number: int) -> None:
        stream = number % 2 == 0
        while not self.stopping:
            ending = await (self.stream() if stream else self.ask())
            async with self.changed:
                self.endings.append(ending)
                self.changed.notify_all()

    async def more(self, count: int) -> None:
        """Until `count` more requests have ended."""
        goal = len(self.endings) + count
        async with self.changed, asyncio.timeout(PATIENCE * 2):
            await self.changed.wait_for(lambda: len(self.endings) >= goal)

    def body(self, stream: bool) -> dict:
        # `ignore_eos` keeps the number of tokens fixed.
        asked = {"model": self.model, "prompt": "One, two,", "max_tokens": self.tokens, "temperature": 0}
        return {**asked, "stream": stream, "ignore_eos": True}

    async def ask(self) -> Ending:
        try:
            answer = await self.http.post(f"{self.url}/v1/completions", json=self.body(False))
            if answer.status_code != 200:
                return Ending("refused", False, f"{answer.status_code} {answer.text[:300]}")
            return Ending("whole" if answer.json()["choices"][0]["finish_reason"] else "lied", False)
        except (httpx.HTTPError, ValueError) as error:
            return Ending("refused", False, repr(error))

    async def stream(self) -> Ending:
        seen = finished = failed = done = False
        why = "ended without an error event"
        try:
            async with self.http.stream("POST", f"{self.url}/v1/completions", json=self.body(True)) as answer:
                if answer.status_code != 200:
                    text = (await answer.aread()).decode(errors="replace")
                    return Ending("refused", True, f"{answer.status_code} {text[:300]}")
                async for line in answer.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    if line == "data: [DONE]":
                        done = True
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        failed, why = True, line[:300]
                        continue
                    seen = True
                    finished = finished or any(choice.get("finish_reason") for choice in event.get("choices", []))
        except (httpx.HTTPError, ValueError) as error:
            why = f"{why}; {error!r}"
        if finished and done and not failed:
            return Ending("whole", True)
        if not seen:
            return Ending("refused", True, why)
        return Ending("cut" if failed and not done else "lied", True, why)

    def count(self) -> Counter:
        return Counter(ending.kind for ending in self.endings)

    def bad(self) -> list[Ending]:
        """What must never be: a request that nobody had seen a byte of fails, or a failure looks like an end."""
        return [ending for ending in self.endings if ending.kind in ("refused", "lied")]
