"""A local W&B server: run directories as `wandb.Api` gets them over HTTP; it answers what the client asks, no more."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from experiments.compare.runs import Finished


class WandbServer:
    """The runs of `us/weakseg` by group and id. The paths of downloaded files are kept in `fetched`; questions in
    `forgotten` are answered with nothing."""

    def __init__(self, groups: dict[str, dict[str, Finished]]) -> None:
        self.groups = {name: group for group, found in groups.items() for name in found}
        self.runs = {name: run for found in groups.values() for name, run in found.items()}
        self.fetched: list[str] = []
        self.forgotten: set[str] = set()
        self.url = ""

    def answer(self, question: str, variables: dict[str, Any]) -> dict[str, Any]:
        if question in self.forgotten:
            return {"viewer": None, "project": None}
        if question in ("Viewer", "GetDefaultEntity"):
            return {"viewer": {"id": "1", "entity": "us", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if (variables["entity"], variables["project"]) != ("us", "weakseg"):
            return {"project": None}
        if question == "Runs":
            wanted = json.loads(variables["filters"]).get("group")
            found = [self.about(name) for name, group in self.groups.items() if wanted in (None, group)]
            return {"project": {"internalId": "1", "runCount": len(found), "readOnly": True, "runs": page(found)}}
        name = variables.get("name") or variables.get("runName") or variables["run"]
        return {"project": {"internalId": "1", "run": self.of_run(question, name, variables)}}

    def of_run(self, question: str, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[name]
        if question == "Run":
            return self.about(name)
        if question == "RunHistoryKeys":
            return {"historyKeys": {"lastStep": run.curve[-1][0] - 1}}
        if question == "RunParquetHistory":
            return {"parquetHistory": {"parquetUrls": [], "liveData": [{"_step": 0}]}}
        if question == "SampledHistoryPage":
            spec = json.loads(variables["spec"])
            rows = [{"_step": step - 1, "val/miou": value} for step, value in run.curve]
            return {"sampledHistory": [[row for row in rows if spec["minStep"] <= row["_step"] <= spec["maxStep"]]]}
        assert question == "RunFiles", f"the client asks {question}, which this server does not know"
        names = sorted(path.name for path in run.folder.iterdir() if path.is_file())
        urls = {file: f"{self.url}/{quote(name)}/{quote(file)}" for file in names}
        nodes = [
            {"id": file, "name": file, "url": url, "directUrl": url, "sizeBytes": (run.folder / file).stat().st_size}
            for file, url in urls.items()
        ]
        return {"fileCount": len(nodes), "files": page(nodes)}

    def about(self, name: str) -> dict[str, Any]:
        run = self.runs[name]
        return {
            **dict.fromkeys(("commit", "description", "notes", "sweepName", "heartbeatAt", "jobType")),
            "id": name, "name": name, "displayName": name, "state": "finished", "group": self.groups[name],
            "createdAt": "2026-01-01T00:00:00", "tags": [], "readOnly": True, "projectId": "1",
            "user": {"name": "me", "username": "me"}, "historyLineCount": len(run.curve), "systemMetrics": "{}",
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "summaryMetrics": json.dumps(run.summary),
        }  # fmt: skip


def page(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    edges = [{"node": node, "cursor": str(k)} for k, node in enumerate(nodes)]
    return {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}


@contextlib.contextmanager
def serving(server: WandbServer) -> Iterator[dict[str, str]]:
    """The environment in which the client asks the server."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            content = {}
            if self.path == "/graphql":
                asked = json.loads(body)
                question = asked["query"].split("query ", 1)[1].split("(")[0].split()[0]
                content = server.answer(question, asked.get("variables") or {})
            self.send(json.dumps({"data": content}).encode())

        def do_GET(self) -> None:
            name, file = map(unquote, Path(self.path).parts[1:])
            server.fetched.append(f"{name}/{file}")
            self.send((server.runs[name].folder / file).read_bytes())

        def send(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "k" * 40}
    finally:
        http.shutdown()
        http.server_close()
