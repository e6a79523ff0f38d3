"""An API server as far as forgeone-admission asks it: objects with versions, lists, watches, conflicts. On loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


class ApiDouble:
    """Objects by the path that they are at."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.objects: dict[str, dict[str, Any]] = {}
        self.history: list[tuple[int, str, str, dict[str, Any]]] = []
        self.version = 0
        self.writes: list[str] = []
        self.ended = False
        self.refused: dict[str, int] = {}
        """Paths, and the status that they are answered with."""

    def put(self, path: str, given: Mapping[str, Any], kind: str = "") -> dict[str, Any]:
        """As somebody else would."""
        with self.changed:
            self.version += 1
            metadata = {**given.get("metadata", {}), "resourceVersion": str(self.version)}
            metadata.setdefault("name", path.rpartition("/")[2])
            event = kind or ("MODIFIED" if path in self.objects else "ADDED")
            self.objects[path] = {**given, "metadata": metadata}
            self.history.append((self.version, event, path, self.objects[path]))
            self.changed.notify_all()
            return self.objects[path]

    def drop(self, path: str) -> None:
        """It is gone."""
        with self.changed:
            self.version += 1
            gone = self.objects.pop(path)
            gone = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self.version)}}
            self.history.append((self.version, "DELETED", path, gone))
            self.changed.notify_all()


def _handler(api: ApiDouble) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {key: value[0] for key, value in parse_qs(parts.query).items()}
            if self._refused(parts.path):
                return
            if query.get("watch"):
                self._watch(parts.path, query)
                return
            with api.changed:
                found = api.objects.get(parts.path)
                if found is None and parts.path.rpartition("/")[2] not in _COLLECTIONS:
                    self._answer(404, {"kind": "Status", "message": "not found"})
                    return
                self._answer(200, found or self._list(parts.path, query))

        def do_PUT(self) -> None:
            body = self._body()
            if self._refused(self.path):
                return
            with api.changed:
                before = api.objects.get(self.path)
                if before is None:
                    self._answer(404, {"message": "not found"})
                elif before["metadata"]["resourceVersion"] != body["metadata"].get("resourceVersion"):
                    self._answer(409, {"message": "the object has been modified"})
                else:
                    api.writes.append(self.path)
                    self._answer(200, api.put(self.path, body))

        def do_POST(self) -> None:
            body = self._body()
            path = f"{self.path}/{body['metadata']['name']}"
            with api.changed:
                if path in api.objects:
                    self._answer(409, {"message": "already exists"})
                else:
                    api.writes.append(path)
                    self._answer(201, api.put(path, body))

        def _list(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
            items = [one for at, one in sorted(api.objects.items()) if _of(at, path, query)]
            first = int(query.get("continue") or 0)
            last = first + int(query.get("limit") or 500)
            metadata: dict[str, str] = {"resourceVersion": str(api.version)}
            if last < len(items):
                metadata["continue"] = str(last)
            head = {"apiVersion": "zta.forgeone.dev/v1alpha1", "kind": "ZTAPolicyList"} if "zta" in path else {}
            return {"kind": "List", "metadata": metadata, "items": items[first:last], **head}

        def _watch(self, path: str, query: Mapping[str, str]) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            seen = int(query["resourceVersion"])
            while True:
                with api.changed:
                    while not api.ended and api.version <= seen:
                        api.changed.wait()
                    if api.ended:
                        break
                    events = [one for one in api.history if one[0] > seen and _of(one[2], path, query)]
                    seen = api.version
                for _, kind, _, given in events:
                    line = json.dumps({"type": kind, "object": given}).encode() + b"\n"
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
            self.wfile.write(b"0\r\n\r\n")

        def _refused(self, path: str) -> bool:
            code = api.refused.get(path)
            if code is not None:
                self._answer(code, {"message": "refused by the test"})
            return code is not None

        def _body(self) -> dict[str, Any]:
            found: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            return found

        def _answer(self, code: int, body: Mapping[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


_COLLECTIONS = {
    "secrets",
    "configmaps",
    "ztapolicies",
    "runtimeclasses",
    "validatingwebhookconfigurations",
    "mutatingwebhookconfigurations",
}


def _of(at: str, path: str, query: Mapping[str, str]) -> bool:
    above, _, name = at.rpartition("/")
    wanted = query.get("fieldSelector", "").removeprefix("metadata.name=")
    return above == path and wanted in {"", name}


@contextmanager
def served(directory: Path) -> Iterator[tuple[ApiDouble, str]]:
    """A double, and the kubeconfig that leads to it."""
    api = ApiDouble()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(api))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    kubeconfig = directory / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    try:
        yield api, str(kubeconfig)
    finally:
        with api.changed:
            api.ended = True
            api.changed.notify_all()
        server.shutdown()
        thread.join()
        server.server_close()
