"""A Hub of one process: the few endpoints that ``huggingface_hub`` asks for a model and its files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin")


@dataclass
class Hub:
    """What is served: commits of one repository, and how it misbehaves.

    Args:
        commits: name and content of every file, by commit.
        revisions: commit by branch.
        moves: called with a revision after it has been resolved.
        error: status and ``X-Error-Code`` of every answer.
        announced: overrides of the announced entry, by file.
        sent: content that is sent in the place of a file's, by name.
        asked: paths of all requests, in order; ``agents`` what they call themselves.
    """

    commits: dict[str, dict[str, bytes]]
    revisions: dict[str, str]
    repository: str = "org/name"
    moves: Any = None
    error: tuple[int, str] | None = None
    announced: dict[str, dict[str, Any]] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)

    def commit_of(self, revision: str) -> str | None:
        commit = self.revisions.get(revision, revision)
        return commit if commit in self.commits else None

    def entry(self, name: str, content: bytes) -> dict[str, Any]:
        sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": sha1}
        if name.endswith(LARGE):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
        return {**entry, **self.announced.get(name, {})}

    def info(self, commit: str) -> dict[str, Any]:
        files = self.commits[commit]
        siblings = [self.entry(name, content) for name, content in sorted(files.items())]
        return {"id": self.repository, "modelId": self.repository, "sha": commit, "siblings": siblings}


def content_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@contextmanager
def served(hub: Hub) -> Iterator[str]:
    """The address of a server, as long as the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.asked.append(path)
            hub.tokens.append(self.headers.get("Authorization"))
            status, headers, content = respond(hub, path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def respond(hub: Hub, path: str) -> tuple[int, dict[str, str], bytes]:
    if hub.error is not None:
        return hub.error[0], {"X-Error-Code": hub.error[1]}, b"{}"
    api = f"api/models/{hub.repository}/revision/"
    if path.startswith(api):
        revision = path.removeprefix(api)
        commit = hub.commit_of(revision)
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        content = json.dumps(hub.info(commit)).encode()
        if hub.moves is not None:
            hub.moves(revision)
        return 200, {"Content-Type": "application/json"}, content
    resolve = f"{hub.repository}/resolve/"
    if path.startswith(resolve):
        revision, _, name = path.removeprefix(resolve).partition("/")
        commit = hub.commit_of(revision)
        if commit is None or name not in hub.commits[commit]:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        content = hub.sent.get(name, hub.commits[commit][name])
        etag = hashlib.sha256(content).hexdigest()
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, content
    return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
