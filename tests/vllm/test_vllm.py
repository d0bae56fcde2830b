"""Streams of a real vLLM that are cut and go on: exactly the uninterrupted answer, at every cut.

One server in float32 without a prefix cache, reached by two ways, of which the first is cut after so many events: what
goes on is computed anew from the prompt, as on another replica.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import httpx
import pytest
from relay import Relay

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "real"))
from rig import TARGET, Gateway, Process, fetch, free_port  # noqa: E402

MODEL = "smollm2"
# A server that does not start within this time on any machine has a fault.
STARTS = 900.0


class Vllm(Process):
    def __init__(self, name: str):
        super().__init__(name)
        self.port = int(os.environ.get("VLLM_PORT", 0)) or free_port()

    def command(self) -> list[str]:
        serve = [str(TARGET / "vllm-venv/bin/python"), "-m", "vllm.entrypoints.openai.api_server"]
        serve += ["--model", str(TARGET / "real/smollm2-f32"), "--served-model-name", MODEL, "--host", "127.0.0.1"]
        serve += ["--port", str(self.port), "--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "16"]
        return [*serve, "--enforce-eager", "--no-enable-prefix-caching"]

    def environment(self) -> dict[str, str]:
        own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
        return {**os.environ, **own}

    def is_up(self) -> bool:
        return fetch(f"http://127.0.0.1:{self.port}/health")[0] == 200


@pytest.fixture(scope="module")
def vllm():
    """One that runs already, where `VLLM_PORT` names it."""
    server = Vllm("vllm")
    if os.environ.get("VLLM_PORT"):
        yield server
        return
    import rig

    rig.PATIENCE = STARTS
    with server:
        yield server


def events(body: str) -> list[dict]:
    found = [line[len("data: ") :] for line in body.split("\n") if line.startswith("data: ")]
    return [json.loads(data) for data in found if data != "[DONE]"]


def told(path: str, body: str) -> dict:
    """What a client makes of a stream: text, finish, usage, and what must be one."""
    answer = {"text": "", "finish": None, "usage": None, "ids": set(), "roles": 0, "whole": False}
    for event in events(body):
        if "error" in event:
            answer["error"] = event["error"]
        if path == "/v1/messages":
            answer["text"] += event.get("delta", {}).get("text", "")
            answer["finish"] = event.get("delta", {}).get("stop_reason") or answer["finish"]
            answer["usage"] = event.get("usage") or answer["usage"]
            answer["whole"] |= event["type"] == "message_stop"
            continue
        if path == "/v1/responses":
            answer["text"] += event["delta"] if event["type"] == "response.output_text.delta" else ""
            if event["type"] in ("response.completed", "response.incomplete"):
                answer.update(finish=event["response"]["status"], whole=True)
                used = event["response"]["usage"]
                answer["usage"] = {name: used[name] for name in ("input_tokens", "output_tokens", "total_tokens")}
            continue
        answer["ids"].add((event.get("id"), event.get("created"), event.get("model")))
        answer["usage"] = event.get("usage") or answer["usage"]
        for choice in event.get("choices", []):
            delta = choice.get("delta", {})
            answer["roles"] += "role" in delta
            answer["text"] += choice.get("text") or delta.get("content") or ""
            answer["finish"] = choice["finish_reason"] or answer["finish"]
            assert not choice.get("token_ids"), "token ids are the gateway's own"
    answer["whole"] |= body.rstrip().endswith("data: [DONE]")
    answer["ids"] = len(answer["ids"])
    answer["usage"] = answer["usage"] and {k: v for k, v in answer["usage"].items() if isinstance(v, int)}
    return answer


def chat(text: str, **more) -> tuple[str, dict]:
    asked = {"messages": [{"role": "user", "content": text}], "max_tokens": 40, "stream_options": {"include_usage": True}}
    return "/v1/chat/completions", {**asked, **more}


def completion(text: str, **more) -> tuple[str, dict]:
    return "/v1/completions", {"prompt": text, "max_tokens": 40, "stream_options": {"include_usage": True}, **more}


CASES = {
    "prose": chat("Tell me about the sea."),
    "list": chat("List five fruits, one on each line."),
    "emoji": chat("Answer in emoji only: 🙂🚀水"),
    "stop": chat("Count from one to ten.", stop=["five", ", s"]),
    "no limit": chat("Say hello in French.", max_tokens=None),
    "least": chat("Say hello.", min_tokens=12),
    "repetition": chat("Tell me a story.", repetition_penalty=1.3),
    "completion": completion("The capital of France is"),
    "message": ("/v1/messages", {"messages": [{"role": "user", "content": "Tell me about bread."}], "max_tokens": 30}),
    "response": ("/v1/responses", {"input": "Tell me about bread.", "max_output_tokens": 30, "store": False}),
}
# By text, tokens may fall otherwise: these have been seen to differ, and must be well-formed all the same.
BY_TEXT = {"message", "response"}


@pytest.mark.parametrize("name", CASES)
def test_every_cut_gives_the_uninterrupted_answer(vllm, name):
    asyncio.run(matrix(vllm, name))


async def matrix(vllm: Vllm, name: str) -> None:
    path, body = CASES[name]
    body = {"model": MODEL, "stream": True, "temperature": 0, **{k: v for k, v in body.items() if v is not None}}
    more = "cache: {mode: off}\nrouting: {prefer: spot, on_demand_share: 0.0}\n"
    async with Relay(vllm.port) as first, Relay(vllm.port) as second, httpx.AsyncClient(timeout=120) as client:
        backends = [f"{{url: '{first.url}', capacity: spot}}", f"{{url: '{second.url}', capacity: on_demand}}"]
        gateway = Gateway("vllm-gateway", backends, more)
        with gateway:
            direct = await client.post(f"http://127.0.0.1:{vllm.port}{path}", json=body)
            assert direct.status_code == 200, direct.text
            whole = told(path, direct.text)
            count = direct.text.count("\n\n")
            cuts = range(count) if os.environ.get("VLLM_CUTS") == "all" else sorted({*range(0, count, 7), 1, 2, count - 2, count - 1})
            wrong = []
            for cut in cuts:
                first.cut(cut)
                answer = await client.post(f"{gateway.url}{path}", json=body)
                got = told(path, answer.text)
                first.cut(None)
                if got != whole:
                    wrong.append((cut, got))
            modes = {mode: gateway.metric(rf'sluicegate_resumes_total\{{cause="cut",mode="{mode}"\}}') for mode in ("tokens", "text", "restart", "end")}
            print(f"\n{name}: {len(list(cuts)) - len(wrong)} of {len(list(cuts))} exact, {first.cuts} cut, {modes}")
            for cut, got in wrong:
                print(f"  cut {cut}: {got}\n  whole: {whole}")
            if name in BY_TEXT:
                assert all(got["whole"] and "error" not in got for _, got in wrong)
            else:
                assert not wrong
