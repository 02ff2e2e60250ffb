"""A Hugging Face Hub in this process, for trying things out: repositories in memory, behind the real Hub's protocol.

    from local_hub import start_hub

    start_hub()  # before anything that imports huggingface_hub

It knows what pushing and pulling adapters takes, and nothing else. It listens on this machine only, and forgets
everything when the process ends.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import re
import secrets
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["Files", "HubHandler", "LocalHub", "Repo", "start_hub"]

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


class HubHandler(BaseHTTPRequestHandler):
    """Answers one request after the other of a connection."""

    server: LocalHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits for the client to acknowledge the headers, which takes 40 ms

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""

    def do_GET(self) -> None:
        """Find who answers: the methods of a request and its path decide."""
        url = urlsplit(self.path)
        path = unquote(url.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.route(f"{self.command} {path}", body=body, query=url.query)

    do_HEAD = do_POST = do_GET

    def route(self, line: str, *, body: bytes, query: str) -> None:
        """Answer a request, ``"METHOD path"``."""
        for pattern, handle in _ROUTES:
            if match := re.fullmatch(pattern, line):
                return handle(self, *match.groups(), body=body, query=query)
        self.answer(404, {"error": f"the local Hub knows no {line}"})

    def answer(self, status: int, content: Any = None, **headers: str) -> None:
        """Send bytes, or anything else as JSON."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(data)

    def send_body(self, data: bytes) -> None:
        """Send what follows the headers."""
        self.wfile.write(data)

    def refuse(self, status: int, code: str, **headers: str) -> None:
        """Send an error as the Hub words it."""
        self.answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code, **headers)

    def create_repo(self, *, body: bytes, query: str) -> None:
        """Make a repository, unless there is one."""
        fields = json.loads(body)
        repo_id = f"{fields.get('organization') or 'me'}/{fields['name']}"
        taken = repo_id in self.server.repos
        if not taken:
            private = fields.get("visibility") == "private" or fields.get("private", False)
            self.server.add(repo_id, private=private)
        self.answer(409 if taken else 200, {"url": f"{self.server.url}/{repo_id}", "name": repo_id})

    def validate_yaml(self, *, body: bytes, query: str) -> None:
        """Say whether a card's metadata is YAML."""
        import yaml

        block = re.match(r"\s*---\r?\n(.*?)\r?\n---", json.loads(body)["content"], re.DOTALL)
        try:
            yaml.safe_load(block.group(1) if block else "")
        except yaml.YAMLError as error:
            return self.answer(400, {"errors": [{"message": str(error)}], "warnings": []})
        self.answer(200, {"errors": [], "warnings": []})

    def create_branch(self, repo_id: str, branch: str, *, body: bytes, query: str) -> None:
        """Make a branch of the main one, unless there is one."""
        repo = self.server.repos[repo_id]
        taken = branch in repo.branches
        repo.branches.setdefault(branch, repo.branches["main"])
        self.answer(409 if taken else 200, {})

    def info(self, repo_id: str, revision: str | None, *, body: bytes, query: str) -> None:
        """Say what a repository holds."""
        repo = self.server.repos.get(repo_id)
        oid = repo and repo.resolve(revision or "main")
        if repo is None or oid is None:
            return self.refuse(404, "RepoNotFound" if repo is None else "RevisionNotFound")
        siblings = [{"rfilename": name} for name in repo.commits[oid]]
        self.answer(200, {"id": repo_id, "sha": oid, "siblings": siblings, "private": repo.private})

    def preupload(self, repo_id: str, revision: str, *, body: bytes, query: str) -> None:
        """Ask for every file to come with the commit."""
        files = [file["path"] for file in json.loads(body)["files"]]
        modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
        self.answer(200, {"files": modes})

    def commit(self, repo_id: str, branch: str, *, body: bytes, query: str) -> None:
        """Commit files to a branch, or open a pull request with them."""
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
        """Send a file of a branch or a commit."""
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
            return self.refuse(404, "EntryNotFound", X_Repo_Commit=oid)
        etag = hashlib.sha256(content).hexdigest()
        if not name.endswith(".safetensors"):
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.answer(200, content, X_Repo_Commit=oid, ETag=f'"{etag}"')


_ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"POST /api/repos/create", HubHandler.create_repo),
    (r"POST /api/validate-yaml", HubHandler.validate_yaml),
    (r"POST /api/models/([^/]+/[^/]+)/branch/(.+)", HubHandler.create_branch),
    (r"POST /api/models/([^/]+/[^/]+)/preupload/(.+)", HubHandler.preupload),
    (r"POST /api/models/([^/]+/[^/]+)/commit/(.+)", HubHandler.commit),
    (r"GET /api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", HubHandler.info),
    (r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/(.+)", HubHandler.resolve),
]


class LocalHub(ThreadingHTTPServer):
    """The server; it starts when it is made."""

    daemon_threads = True

    def __init__(self, handler: type[HubHandler] = HubHandler) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.reset()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def reset(self) -> None:
        """Forget everything."""
        self.repos: dict[str, Repo] = {}

    def add(self, repo_id: str, files: Files | None = None, **attributes: Any) -> Repo:
        """Add a repository with one commit."""
        repo = self.repos[repo_id] = Repo(**attributes)
        repo.commit({".gitattributes": b"", **(files or {})})
        return repo

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""


@functools.cache
def start_hub() -> LocalHub:
    """Start a Hub and make this process use it; a second call returns the same.

    Raises:
        RuntimeError: huggingface_hub, which reads the Hub's address when it is imported, was imported already.
    """
    if "huggingface_hub" in sys.modules:
        raise RuntimeError("huggingface_hub was imported already: restart Python, and call start_hub() before that.")
    hub = LocalHub()
    cache = tempfile.mkdtemp(prefix="local-hub-")  # the downloads of a Hub that is gone are of no use to anybody
    os.environ.update(HF_ENDPOINT=hub.url, HF_HOME=cache, HF_TOKEN="hf_local", NO_PROXY="*")
    os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    return hub
