"""A Hub on this machine: repositories with commits and branches in memory, behind the real Hub's protocol.

It can be told to misbehave. ``python -m tests.loopback_hub MODULE`` runs the functions of ``MODULE.SCENARIOS``, each
against a Hub of its own, and prints what each raised: huggingface_hub reads the Hub's address when it is imported, so
that tests need another process (`run_scenarios`).
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
Files = dict[str, bytes]


@dataclass
class Repo:
    """One repository: the files of every commit, and the commit of every branch."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: Files, *, branch: str = "main") -> str:
        """Add files on top of a branch and return the commit's id."""
        tree = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        oid = secrets.token_hex(20)
        self.commits[oid], self.branches[branch] = tree, oid
        return oid

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a branch, or a commit itself, names."""
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> Files:
        """Return the files of a branch or a commit."""
        return self.commits[self.branches.get(revision, revision)]


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


class LoopbackHub(ThreadingHTTPServer):
    """The server. ``faults`` maps ``"METHOD end"`` or ``" end"``, the last parts of a path, to what goes wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.reset()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def reset(self) -> None:
        """Forget everything."""
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.faults: dict[str, str] = {}
        self.before: dict[str, Callable[[], object]] = {}  # called before such a request is answered, once

    def add(self, repo_id: str, files: Files | None = None, **attributes: Any) -> Repo:
        """Add a repository with one commit."""
        repo = self.repos[repo_id] = Repo(**attributes)
        repo.commit({".gitattributes": b"", **(files or {})})
        return repo

    def asked(self, what: str) -> list[Request]:
        """Return the requests whose ``"METHOD path"`` begins with these words."""
        return [request for request in self.requests if f"{request.method} {request.path}".startswith(what)]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""


def _fits(what: str, line: str) -> bool:
    method, _, end = what.partition(" ")
    return line.startswith(method) and line.endswith(f"/{end}")


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits for the client to acknowledge the headers, which takes 40 ms

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(Request(self.command, path, headers, body))
        line = f"{self.command} {path}"
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
        for pattern, handle in _ROUTES:
            if match := re.fullmatch(pattern, line):
                return handle(self, *match.groups(), body=body, query=url.query)
        self.answer(404, {"error": f"the loopback Hub knows no {line}"})

    do_HEAD = do_POST = do_GET

    def answer(self, status: int, content: Any = None, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        length = len(data)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: length // 2] if self.fault == "drop" else data)
        if self.fault == "drop":
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(2)

    def refuse(self, status: int, code: str, **headers: str) -> None:
        self.answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code, **headers)

    def create_repo(self, *, body: bytes, query: str) -> None:
        fields = json.loads(body)
        repo_id = f"{fields.get('organization') or 'me'}/{fields['name']}"
        taken = repo_id in self.server.repos
        if not taken:
            private = fields.get("visibility") == "private" or fields.get("private", False)
            self.server.add(repo_id, private=private)
        self.answer(409 if taken else 200, {"url": f"{self.server.url}/{repo_id}", "name": repo_id})

    def validate_yaml(self, *, body: bytes, query: str) -> None:
        import yaml

        block = re.match(r"\s*---\r?\n(.*?)\r?\n---", json.loads(body)["content"], re.DOTALL)
        try:
            yaml.safe_load(block.group(1) if block else "")
        except yaml.YAMLError as error:
            return self.answer(400, {"errors": [{"message": str(error)}], "warnings": []})
        self.answer(200, {"errors": [], "warnings": []})

    def create_branch(self, repo_id: str, branch: str, *, body: bytes, query: str) -> None:
        repo = self.server.repos[repo_id]
        taken = branch in repo.branches
        repo.branches.setdefault(branch, repo.branches["main"])
        self.answer(409 if taken else 200, {})

    def info(self, repo_id: str, revision: str | None, *, body: bytes, query: str) -> None:
        repo = self.server.repos.get(repo_id)
        oid = repo and repo.resolve(revision or "main")
        if repo is None or oid is None:
            return self.refuse(404, "RepoNotFound" if repo is None else "RevisionNotFound")
        siblings = [{"rfilename": name} for name in repo.commits[oid]]
        self.answer(200, {"id": repo_id, "sha": oid, "siblings": siblings, "private": repo.private})

    def preupload(self, repo_id: str, revision: str, *, body: bytes, query: str) -> None:
        files = [file["path"] for file in json.loads(body)["files"]]
        modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
        self.answer(200, {"files": modes})

    def commit(self, repo_id: str, branch: str, *, body: bytes, query: str) -> None:
        repo, lines = self.server.repos[repo_id], [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        pull = "create_pr=1" in query
        if parent and parent != repo.branches.get(branch) and not pull:
            return self.answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines[1:]}
        if pull:
            pulls = sum(name.startswith("refs/pr/") for name in repo.branches) + 1
            repo.branches[f"refs/pr/{pulls}"] = parent or repo.branches[branch]
            branch = f"refs/pr/{pulls}"
        oid = repo.commit(files, branch=branch)
        url = f"{self.server.url}/{repo_id}"
        pull_url = f"{url}/discussions/{branch.rpartition('/')[2]}" if pull else None
        self.answer(200, {"commitUrl": f"{url}/commit/{oid}", "commitOid": oid, "pullRequestUrl": pull_url})

    def resolve(self, repo_id: str, rest: str, *, body: bytes, query: str) -> None:
        repo = self.server.repos.get(repo_id)
        if repo is None or (repo.private and "authorization" not in self.headers):
            return self.refuse(401, "RepoNotFound")
        if repo.gated:
            return self.refuse(403, "GatedRepo")
        # A branch's slashes are quoted in the address; here both are unquoted, and the longest branch goes first.
        known = sorted([*repo.branches, *repo.commits], key=len, reverse=True)
        revision = next((each for each in known if rest.startswith(f"{each}/")), None)
        oid = revision and repo.resolve(revision)
        if not revision or not oid:
            return self.refuse(404, "RevisionNotFound")
        name = rest[len(revision) + 1 :]
        content = repo.commits[oid].get(name)
        if content is None:
            answered = self.fault.removeprefix("commit ") if self.fault.startswith("commit ") else oid
            return self.refuse(404, "EntryNotFound", X_Repo_Commit=answered)
        etag = hashlib.sha256(content).hexdigest()
        if not name.endswith(".safetensors"):
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        headers = {"X-Repo-Commit": oid, "ETag": f'"{etag}"'}
        if self.fault == "no etag":
            del headers["ETag"]
        if self.fault == "other etag":
            headers["ETag"] = f'"{etag[::-1]}"'
        if self.fault == "mirror etag":
            headers["ETag"] = '"5f3a-61"'
        if self.fault.startswith(("etag ", "linked ")):
            kind, _, tag = self.fault.partition(" ")
            headers["X-Linked-ETag" if kind == "linked" else "ETag"] = tag
        if self.fault.startswith("commit "):
            headers["X-Repo-Commit"] = self.fault.removeprefix("commit ")
        if self.fault == "other length":
            content += b"\0"
        if self.fault == "other content":
            content = bytes([content[0] ^ 1]) + content[1:]
        self.answer(200, content, **headers)


_ROUTES: list[tuple[str, Any]] = [
    (r"POST /api/repos/create", _Handler.create_repo),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (r"POST /api/models/([^/]+/[^/]+)/branch/(.+)", _Handler.create_branch),
    (r"POST /api/models/([^/]+/[^/]+)/preupload/(.+)", _Handler.preupload),
    (r"POST /api/models/([^/]+/[^/]+)/commit/(.+)", _Handler.commit),
    (r"GET /api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", _Handler.info),
    (r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/(.+)", _Handler.resolve),
]


def run_scenarios(module: str) -> dict[str, str]:
    """Run a module's scenarios in another process; return the traceback of each, ``""`` for none."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    kept.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_TELEMETRY="1", NO_PROXY="*")
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
