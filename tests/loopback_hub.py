"""The Hub of the examples, `local_hub`, which can be told to misbehave.

``python -m tests.loopback_hub MODULE`` runs the functions of ``MODULE.SCENARIOS``, each against a Hub of its own, and
prints what each raised: huggingface_hub reads the Hub's address when it is imported, so that tests need another process
(`run_scenarios`).
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_hub import Files, HubHandler, LocalHub, Repo

ROOT = Path(__file__).resolve().parents[1]

__all__ = ["Files", "LoopbackHub", "Repo", "run_scenarios"]


@dataclass
class Request:
    """What a client asked for."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def lines(self) -> list[Any]:
        """Return the body's JSON, one value for each line."""
        return [json.loads(line) for line in self.body.splitlines()]


class LoopbackHub(LocalHub):
    """The server. ``faults`` maps ``"METHOD end"`` or ``" end"``, the last parts of a path, to what goes wrong."""

    def __init__(self) -> None:
        super().__init__(_Handler)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.requests: list[Request] = []
        self.faults: dict[str, str] = {}
        self.before: dict[str, Callable[[], object]] = {}  # called before such a request is answered, once

    def asked(self, what: str) -> list[Request]:
        """Return the requests whose ``"METHOD path"`` begins with these words."""
        return [request for request in self.requests if f"{request.method} {request.path}".startswith(what)]


def _fits(what: str, line: str) -> bool:
    method, _, end = what.partition(" ")
    return line.startswith(method) and line.endswith(f"/{end}")


class _Handler(HubHandler):
    server: LoopbackHub

    def route(self, line: str, *, body: bytes, query: str) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(Request(self.command, line.partition(" ")[2], headers, body))
        for action in [self.server.before.pop(what) for what in list(self.server.before) if _fits(what, line)]:
            action()
        self.fault = next((fault for what, fault in self.server.faults.items() if _fits(what, line)), "")
        if self.fault.isdigit():
            said = f"you sent {headers.get('authorization')}"  # as a proxy may
            return self.answer(int(self.fault), {"error": said}, X_Error_Message=said)
        if self.fault == "hang up":
            return self.hang_up()
        if self.fault.startswith("answer "):
            return self.answer(200, self.fault.removeprefix("answer ").encode())
        if self.fault == "redirect":
            return self.answer(302, {}, Location=self.path)
        if self.fault == "slow":
            threading.Event().wait(0.3)
        super().route(line, body=body, query=query)

    def answer(self, status: int, content: Any = None, **headers: str) -> None:
        kind, _, value = self.fault.partition(" ")
        if "X_Repo_Commit" in headers and kind == "commit":
            headers["X_Repo_Commit"] = value
        if "ETag" in headers:  # a file
            content = self.spoil(content, headers)
        super().answer(status, content, **headers)
        if self.fault == "drop":
            self.hang_up()

    def send_body(self, data: bytes) -> None:
        super().send_body(data[: len(data) // 2] if self.fault == "drop" else data)

    def spoil(self, content: bytes, headers: dict[str, str]) -> bytes:
        kind, _, value = self.fault.partition(" ")
        if self.fault == "no etag":
            del headers["ETag"]
        elif self.fault == "other etag":
            headers["ETag"] = f'"{headers["ETag"][-2:0:-1]}"'
        elif self.fault == "mirror etag":
            headers["ETag"] = '"5f3a-61"'
        elif kind in ("etag", "linked"):
            headers["X-Linked-ETag" if kind == "linked" else "ETag"] = value
        elif self.fault == "other length":
            return content + b"\0"
        elif self.fault == "other content":
            return bytes([content[0] ^ 1]) + content[1:]
        return content

    def hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(2)


def run_scenarios(module: str) -> dict[str, str]:
    """Run a module's scenarios in another process; return the traceback of each, ``""`` for none."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    kept.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_TELEMETRY="1", NO_PROXY="*")
    kept["PYTHONPATH"] = os.pathsep.join([str(ROOT / "examples"), *filter(None, [kept.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "tests.loopback_hub", module]
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    results: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return results


def _main(module: str) -> None:
    hub = LoopbackHub()
    time_sleep, time.sleep = time.sleep, lambda seconds: time_sleep(min(seconds, 0.01))  # waits between attempts
    results = {}
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(HF_ENDPOINT=hub.url, HF_HOME=home)
        for scenario in importlib.import_module(module).SCENARIOS:
            hub.reset()
            warnings.simplefilter("error")
            try:
                with tempfile.TemporaryDirectory() as directory:
                    scenario(hub, Path(directory))
                results[scenario.__name__] = ""
            except BaseException:
                results[scenario.__name__] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    _main(sys.argv[1])
