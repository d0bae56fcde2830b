#!/usr/bin/env python3
"""CPU time per request: the gateway against Debian's nginx, same backend, same load, in one run.

Needs nginx and wrk (`make bench` installs them). Prints one table; ends what it started, also when interrupted.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream backend {{ server 127.0.0.1:{backend}; keepalive 256; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection "";
      client_max_body_size 32m; proxy_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""
GATEWAY = """
listen: 127.0.0.1:{port}
admin: 'off'
workers: 1
backends: [{{url: 'http://127.0.0.1:{backend}', engine: vllm, models: any}}]
"""
# 1 KiB: a short chat request. Sampled, so that nothing on the way may keep the answer.
REQUEST = {"model": "sim", "max_tokens": 8, "temperature": 0.7, "messages": [{"role": "user", "content": ""}]}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def body() -> str:
    padding = 1024 - len(json.dumps(REQUEST))
    REQUEST["messages"][0]["content"] = "w" * padding
    return json.dumps(REQUEST)


def answers(port: int, payload: str) -> bool:
    url, headers = f"http://127.0.0.1:{port}/v1/chat/completions", {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, payload.encode(), headers), timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def start(stack: ExitStack, command: list[str], port: int, payload: str, log: Path) -> int:
    """Runs until the stack is closed; returns when it answers a request."""
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)

    def end() -> None:
        child.terminate()
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    stack.callback(end)
    deadline = time.monotonic() + 20
    while not answers(port, payload):
        if child.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"{command[0]} does not answer on port {port}:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)
    return child.pid


def family(pid: int) -> list[int]:
    """The process and its children: nginx works in one."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


def processor_time(pid: int) -> float:
    """Seconds on a processor of all threads of the process and its children."""
    tasks = [task for member in family(pid) for task in Path(f"/proc/{member}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def load(port: int, script: Path, args, cores: list[str]) -> tuple[int, str]:
    """Requests answered, and the 99th percentile as wrk writes it."""
    command = [*cores, "wrk", "-t1", f"-c{args.connections}", f"-d{args.seconds}s", "--latency", "-s", str(script)]
    told = subprocess.run([*command, f"http://127.0.0.1:{port}/v1/chat/completions"], capture_output=True, text=True)
    count = re.search(r"(\d+) requests in", told.stdout)
    if told.returncode or not count or "Non-2xx" in told.stdout or "Socket errors" in told.stdout:
        sys.exit(f"the round on port {port} had errors and does not count:\n{told.stdout}{told.stderr}")
    return int(count.group(1)), re.search(r"99%\s+(\S+)", told.stdout).group(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release/sluicegate", help="the gateway, and the backend (its `sim`)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--connections", type=int, default=32)
    args = parser.parse_args()
    os.environ["PATH"] += ":/usr/sbin"
    for tool in (args.bin, "nginx", "wrk"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is missing: `make bench` sets all up")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    usable = sorted(os.sched_getaffinity(0))
    apart = len(usable) > 1 and shutil.which("taskset")
    on_first = ["taskset", "-c", str(usable[0])] if apart else []
    on_others = ["taskset", "-c", ",".join(map(str, usable[1:]))] if apart else []

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluicegate-overhead-")))
        folder.chmod(0o755)
        payload, backend = body(), free_port()
        (folder / "load.lua").write_text(
            f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [==[{payload}]==]\n'
        )
        sim = [*on_others, args.bin, "sim", "--listen", f"127.0.0.1:{backend}", "--length", "8"]
        start(stack, sim, backend, payload, folder / "sim.log")
        proxies = {}
        for name, template, command in (
            ("nginx", NGINX, ["nginx", "-p", str(folder), "-c"]),
            ("sluicegate", GATEWAY, [args.bin, "serve", "--config"]),
        ):
            port, file = free_port(), folder / f"{name}.conf"
            file.write_text(template.format(port=port, backend=backend, folder=folder))
            proxies[name] = port, start(stack, [*on_first, *command, str(file)], port, payload, folder / f"{name}.out")

        cost = {name: [] for name in proxies}
        tail = {}
        for round in range(args.rounds):
            # Who goes first changes, so that neither has the warmer machine.
            for name in sorted(proxies, reverse=bool(round % 2)):
                port, pid = proxies[name]
                before = processor_time(pid)
                count, tail[name] = load(port, folder / "load.lua", args, on_others)
                cost[name].append((processor_time(pid) - before) / count * 1e6)
                print(f"round {round + 1}: {name} {cost[name][-1]:.1f} µs, {count} requests", file=sys.stderr)

    print("| proxy | CPU per request, µs (median) | least | most | p99 of the last round | ratio to nginx |")
    print("| --- | --: | --: | --: | --: | --: |")
    base = statistics.median(cost["nginx"])
    for name, values in cost.items():
        middle = statistics.median(values)
        row = f"{middle:.1f} | {min(values):.1f} | {max(values):.1f} | {tail[name]} | {middle / base:.2f}"
        print(f"| {name} | {row} |")


if __name__ == "__main__":
    main()
