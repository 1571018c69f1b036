"""A stand-in for Hugging Face's Hub: the part of its HTTP API that uploads and downloads use, on this machine alone."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories of models in memory.

    Attributes:
        repositories: the files of each one by name; of one revision only.
        requests: method and path of every request.
        token: what a client must send to write, and to read a private repository.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.requests: list[str] = []
        self.token = "hf_stand_in"
        self.url = ""

    def revision(self, repository: str) -> str:
        """Return the commit of a repository: a digest of its files."""
        files = sorted(self.repositories[repository].items())
        return hashlib.sha1(b"".join(name.encode() + content for name, content in files)).hexdigest()


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve a stand-in on 127.0.0.1 inside the context."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, content: object = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def handle_request(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        allowed = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        parts = path.strip("/").split("/")
        if self.command == "POST":
            if not allowed:
                self.refuse(401, "Unauthorized")
            elif path == "/api/repos/create":
                self.create(json.loads(body))
            elif parts[:2] == ["api", "models"] and parts[4] == "preupload":
                files = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(body)["files"]]
                self.answer(200, {"files": [each | {"shouldIgnore": False} for each in files]})
            elif parts[:2] == ["api", "models"] and parts[4] == "commit":
                self.commit("/".join(parts[2:4]), body)
            else:
                self.answer(200)
            return
        repository = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if repository not in self.hub.repositories or (repository in self.hub.private and not allowed):
            self.refuse(404 if allowed else 401, "RepoNotFound")
            return
        files, commit = self.hub.repositories[repository], self.hub.revision(repository)
        revision = parts[5] if parts[0] == "api" and len(parts) > 5 else parts[3] if parts[0] != "api" else "main"
        if revision not in ("main", commit):
            self.refuse(404, "RevisionNotFound")
        elif parts[0] == "api" and parts[4:5] == ["tree"]:
            self.answer(200, [self.describe(name, content) for name, content in files.items()])
        elif parts[0] == "api":
            siblings = [{"rfilename": name} for name in files]
            self.answer(200, {"id": repository, "modelId": repository, "sha": commit, "siblings": siblings})
        elif (name := "/".join(parts[4:])) in files:
            content = files[name]
            etag = hashlib.sha256(content).hexdigest()
            self.answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=commit, Content_Type="application/octet-stream")
        else:
            self.refuse(404, "EntryNotFound")

    do_GET = do_HEAD = do_POST = handle_request  # noqa: N815

    def describe(self, name: str, content: bytes) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def create(self, options: dict[str, object]) -> None:
        name = "/".join(str(options[key]) for key in ("organization", "name") if options.get(key))
        if name in self.hub.repositories:
            self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
            return
        self.hub.repositories[name] = {}
        if options.get("private") or options.get("visibility") == "private":
            self.hub.private.add(name)
        self.answer(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def commit(self, repository: str, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.hub.repositories[repository][entry["value"]["path"]] = content
        commit = self.hub.revision(repository)
        url = f"{self.hub.url}/{repository}/commit/{commit}"
        self.answer(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})
