"""A server on this machine that speaks as much of W&B's GraphQL as its client needs to log in and store a report."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer(ThreadingHTTPServer):
    """Keeps the variables of every mutation that is to store a report; with ``denies`` it refuses them."""

    daemon_threads = True

    def __init__(self, *, denies: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.denies = denies
        self.reports: list[dict[str, Any]] = []
        self.projects: list[dict[str, Any]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in query:
            self.reports.append(variables)
            if self.denies:
                return {"data": {"upsertView": None}, "errors": [{"message": "permission denied"}]}
            project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
            view = {key: variables[key] for key in ("name", "displayName", "description", "spec")}
            stored = {"id": "Vmlldzox", "type": "runs", "project": project, "updatedAt": "2026-01-01T00:00:00", **view}
            return {"data": {"upsertView": {"view": stored, "inserted": True}}}
        if "CreateProject" in query:
            self.projects.append(variables["input"])
            made = {"id": "p", "name": "", "entityName": "", "description": "", "access": "", "views": ""}
            return {"data": {"result": {"project": made, "model": made, "inserted": True}}}
        if "GetProjects" in query:
            return {"data": {"models": {"edges": [], "pageInfo": {"hasNextPage": False, "endCursor": ""}}}}
        user = {"id": "u", "username": "me", "entity": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"data": {"viewer": user}}


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer

    def do_HEAD(self) -> None:
        self._send(b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path != "/graphql":  # the client's telemetry
            self._send(b"")
            return
        asked = json.loads(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
        self._send(json.dumps(self.server.answer(asked["query"], asked.get("variables") or {})).encode())

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@contextmanager
def serving(*, denies: bool = False) -> Iterator[WandbServer]:
    """Serve within the block."""
    server = WandbServer(denies=denies)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
