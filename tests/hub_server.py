"""A stand-in for the Hugging Face hub on 127.0.0.1, which the real client talks to: repositories in memory, commits of
small files in the request, of large ones by Git LFS."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_a_test"


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []

    @staticmethod
    def revision(files: dict[str, bytes]) -> str:
        return hashlib.sha1(json.dumps(sorted(files)).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def answer(self, content: object = None, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        body, path = self.body(), self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told.get('organization') or 'me'}/{told['name']}"
            status = 409 if name in self.server.repositories else 200
            self.server.repositories.setdefault(name, {})
            self.server.private.setdefault(name, told.get("private") or told.get("visibility") == "private")
            return self.answer({"url": f"{self.server.address}/{name}", "id": name}, status)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.endswith("/objects/batch"):
            objects = [{**one, "actions": {"upload": {"href": f"{self.server.address}/large/{one['oid']}"}}}
                       for one in json.loads(body)["objects"]]  # fmt: skip
            return self.answer({"objects": objects, "transfer": "basic"})
        name = "/".join(path.split("/")[3:5])
        if name not in self.server.repositories:
            return self.refuse(404, "RepoNotFound")
        if "/preupload/" in path:
            files = [{"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(".ckpt") else "regular",
                      "shouldIgnore": False} for one in json.loads(body)["files"]]  # fmt: skip
            return self.answer({"files": files})
        for line in map(json.loads, body.splitlines()):
            one = line["value"]
            if line["key"] == "file":
                self.server.repositories[name][one["path"]] = base64.b64decode(one["content"])
            elif line["key"] == "lfsFile":
                self.server.repositories[name][one["path"]] = self.server.large[one["oid"]]
        sha = self.server.revision(self.server.repositories[name])
        return self.answer({"commitUrl": f"{self.server.address}/{name}/commit/{sha}", "commitOid": sha})

    def do_PUT(self) -> None:
        self.server.large[self.path.rpartition("/")[2]] = self.body()
        self.answer()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        listing = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if listing else parts[:2])
        files = self.server.repositories.get(name)
        allowed = not self.server.private.get(name) or self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if files is None or not allowed:
            return self.refuse(401 if listing else 404, "RepoNotFound")
        if listing and len(parts) > 5 and parts[5] != "main":
            return self.refuse(404, "RevisionNotFound")
        sha = self.server.revision(files)
        if listing:
            return self.answer({"id": name, "sha": sha, "siblings": [{"rfilename": one} for one in files]})
        asked = "/".join(parts[4:])
        self.server.asked.append(asked)
        if asked not in files:
            return self.refuse(404, "EntryNotFound")
        etag = hashlib.sha256(files[asked]).hexdigest()
        return self.answer(files[asked], ETag=f'"{etag}"', X_Repo_Commit=sha)

    do_HEAD = do_GET


@contextmanager
def standing_in() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
