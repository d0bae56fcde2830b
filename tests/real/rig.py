"""Real processes for the tests: engines, the gateway, a simulated backend. Each is a context manager that ends what it started."""

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
LOGS = TARGET / "real" / "logs"
MODEL_FILE = TARGET / "real" / "smollm2-f32.gguf"
MODEL = "smollm2"

# How long anything here may take to happen: a bound on a machine that others load too, not an expectation.
PATIENCE = 60.0


def gateway_binary() -> Path:
    """`SLUICEGATE_BIN`, else the release build, else the debug build."""
    chosen = os.environ.get("SLUICEGATE_BIN")
    candidates = [Path(chosen)] if chosen else [TARGET / "release/sluicegate", TARGET / "debug/sluicegate"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    sys.exit(f"no gateway binary at {' or '.join(map(str, candidates))}: run `cargo build --release`")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(happened, what: str, patience: float = PATIENCE, every: float = 0.05):
    """Ask until `happened()` is true and give its value back. The wait ends with the event, never with a fixed time."""
    deadline = time.monotonic() + patience
    while not (value := happened()):
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {patience:.0f} s: {what}")
        time.sleep(every)
    return value


def fetch(url: str, timeout: float = 5.0) -> tuple[int, str]:
    """Status and text; status 0 when nobody answered."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, ValueError):
        return 0, ""


def die_with_parent() -> None:
    """Runs in the child: killed when the test run is killed, so that nothing is left behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Process:
    """One child with its output in a file. `name` is the file's name."""

    def __init__(self, name: str):
        self.name = name
        self.child: subprocess.Popen | None = None
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{name}.log"
        self.log.write_bytes(b"")

    def command(self) -> list[str]:
        raise NotImplementedError

    def is_up(self) -> bool:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def spawn(self) -> None:
        with self.log.open("ab") as out:
            self.child = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self.environment(),
                preexec_fn=die_with_parent,
            )

    def start(self) -> None:
        self.spawn()
        self.wait_up()

    def wait_up(self) -> None:
        def up() -> bool:
            if self.child.poll() is not None:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise AssertionError(f"{self.name} ended with {self.child.returncode} instead of starting:\n{tail}")
            return self.is_up()

        wait_for(up, f"{self.name} is up (see {self.log})")

    def signal(self, number: int) -> None:
        self.child.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: no goodbye on any connection but the kernel's."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()

    def stop(self) -> int:
        """SIGTERM, then the exit code."""
        self.child.terminate()
        return self.child.wait(timeout=PATIENCE)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_):
        self.kill()


class Engine(Process):
    """One llama.cpp replica. `kill()` and `start()` again give a fresh one on the same port."""

    def __init__(self, name: str, slots: int = 4, *flags: str):
        super().__init__(name)
        self.port = free_port()
        self.slots = slots
        self.flags = flags
        self.url = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        serve = [sys.executable, str(HERE / "engine.py"), "serve"]
        return serve + ["--model", str(MODEL_FILE), "--port", str(self.port), "--slots", str(self.slots), *self.flags]

    def is_up(self) -> bool:
        return fetch(f"{self.url}/health")[0] == 200

    def counter(self, name: str) -> float:
        """A value of its metrics, for instance `requests_processing`; -1 while it does not answer."""
        found = re.search(rf"^llamacpp:{name} ([0-9.e+-]+)$", fetch(f"{self.url}/metrics")[1], re.MULTILINE)
        return float(found.group(1)) if found else -1.0

    def is_idle(self) -> bool:
        return self.counter("requests_processing") == 0 and self.counter("requests_deferred") == 0


class Gateway(Process):
    """`sluicegate serve` with a file. `more` is YAML added at the top level, `backends` are URLs or YAML flow maps."""

    def __init__(self, name: str, backends: list[str], more: str = ""):
        super().__init__(name)
        self.port, self.admin_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin = f"http://127.0.0.1:{self.admin_port}"
        entries = [entry if entry.startswith("{") else f"{{url: '{entry}'}}" for entry in backends]
        lines = [f"listen: 127.0.0.1:{self.port}", f"admin: 127.0.0.1:{self.admin_port}", "backends:"]
        lines += [f"  - {entry}" for entry in entries]
        self.config = LOGS / f"{name}.yaml"
        self.config.write_text("\n".join(lines) + "\n" + more)

    def command(self) -> list[str]:
        return [str(gateway_binary()), "serve", "--config", str(self.config)]

    def environment(self) -> dict[str, str]:
        # What the shell that runs the tests has set must not change the gateway under test.
        return {name: value for name, value in os.environ.items() if not name.startswith("SLUICEGATE_") and name != "PORT"}

    def is_up(self) -> bool:
        return fetch(f"{self.admin}/readyz")[0] == 200

    def metric(self, name: str) -> float:
        """Sum over all series of a metric."""
        found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? ([0-9.e+-]+)$", fetch(f"{self.admin}/metrics")[1], re.MULTILINE)
        return sum(map(float, found))


class Sim(Process):
    """`sluicegate sim`."""

    def __init__(self, name: str, *flags: str):
        super().__init__(name)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.flags = flags

    def command(self) -> list[str]:
        return [str(gateway_binary()), "sim", "--listen", f"127.0.0.1:{self.port}", *self.flags]

    def environment(self) -> dict[str, str]:
        return Gateway.environment(self)

    def is_up(self) -> bool:
        return fetch(f"{self.url}/health")[0] == 200

    def served(self) -> int:
        """Requests that were answered to their end."""
        return json.loads(fetch(f"{self.url}/sim/state")[1])["served"]


class Redis(Process):
    """Debian's `redis-server`, with a password and without a file: `kill()` and `start()` again give an empty one."""

    PASSWORD = "p@ss/w"

    def __init__(self, name: str):
        super().__init__(name)
        self.port = free_port()
        self.url = f"redis://:{quote(self.PASSWORD, safe='')}@127.0.0.1:{self.port}/2"

    def command(self) -> list[str]:
        quiet = ["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(LOGS)]
        return ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--requirepass", self.PASSWORD, *quiet]

    def is_up(self) -> bool:
        return self.ask("PING") == "PONG"

    def ask(self, *words: str) -> str:
        """What `redis-cli` prints for a command; empty when nobody answers."""
        command = ["redis-cli", "-p", str(self.port), "-n", "2", "--raw", *words]
        environment = {**os.environ, "REDISCLI_AUTH": self.PASSWORD}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", timeout=PATIENCE)
        return done.stdout.strip() if done.returncode == 0 else ""

    def names(self) -> list[str]:
        return sorted(self.ask("KEYS", "*").split())
