"""As much of an API server as the agent needs, over HTTPS; objects and refusals are recorded from a real one (1.36)."""

from __future__ import annotations

import copy
import datetime
import http.server
import ipaddress
import json
import ssl
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("recorded.json").read_text())


class ApiServer:
    """A context manager. ``nodes``, ``leases`` by name, ``events`` as they came; ``refuse``: methods and statuses."""

    def __init__(self, directory: Path) -> None:
        self.nodes: dict[str, Any] = {}
        self.leases: dict[str, Any] = {}
        self.events: list[Any] = []
        self.refuse: list[tuple[str, int]] = []
        self.changed = threading.Condition()
        self.log: list[tuple[int, str, str, Any]] = []
        self._revision = 100
        certificate, key = _certificate(directory)
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.kubeconfig = directory / "kubeconfig"
        cluster = {"server": f"https://127.0.0.1:{self._server.server_port}", "certificate-authority": str(certificate)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        self.kubeconfig.write_text(yaml.safe_dump(content))

    def __enter__(self) -> ApiServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add_node(self, name: str) -> None:
        node = copy.deepcopy(RECORDED["node"])
        node["metadata"]["name"] = name
        self._keep("nodes", self.nodes, name, node, "ADDED")

    def labels(self, name: str) -> dict[str, str]:
        return dict(self.nodes[name]["metadata"].get("labels") or {})

    def annotations(self, name: str) -> dict[str, str]:
        found = dict(self.nodes[name]["metadata"].get("annotations") or {})
        found.pop("node.alpha.kubernetes.io/ttl", None)
        return found

    def change_node(self, name: str, change: dict[str, Any]) -> tuple[int, Any]:
        """A strategic merge patch, as far as maps of strings and taints go."""
        with self.changed:
            if name not in self.nodes:
                return 404, RECORDED["missing"]
            node = copy.deepcopy(self.nodes[name])
            expected = change.get("metadata", {}).get("resourceVersion")
            if expected and expected != node["metadata"]["resourceVersion"]:
                return 409, RECORDED["conflict"]
            _merge(node, change)
            if node != self.nodes[name]:
                self._keep("nodes", self.nodes, name, node, "MODIFIED")
            return 200, self.nodes[name]

    def put_lease(self, name: str, body: dict[str, Any], *, new: bool) -> tuple[int, Any]:
        with self.changed:
            if new and name in self.leases:
                return 409, RECORDED["exists"]
            if not new and body["metadata"].get("resourceVersion") != self.leases[name]["metadata"]["resourceVersion"]:
                return 409, RECORDED["conflict"]
            lease = copy.deepcopy(RECORDED["lease"])
            lease["metadata"]["name"] = name
            lease["spec"] = body["spec"]
            self._keep("leases", self.leases, name, lease, "ADDED" if new else "MODIFIED")
            return 201 if new else 200, lease

    def _keep(self, kind: str, store: dict[str, Any], name: str, item: Any, event: str) -> None:
        with self.changed:
            self._revision += 1
            item["metadata"]["resourceVersion"] = str(self._revision)
            store[name] = item
            self.log.append((self._revision, kind, event, copy.deepcopy(item)))
            self.changed.notify_all()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: ApiServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        words, query = parts.path.strip("/").split("/"), {key: value[0] for key, value in parse_qs(parts.query).items()}
        kind = "nodes" if "nodes" in words else "leases"
        store = self.api.nodes if kind == "nodes" else self.api.leases
        if words[-1] != kind:
            found = store.get(words[-1])
            self._answer(200 if found else 404, found or RECORDED["missing"])
        elif "watch" in query:
            self._watch(kind, store, query)
        else:
            chosen = [item for item in store.values() if _selected(item, query.get("labelSelector", ""))]
            self._answer(
                200, {"kind": "List", "metadata": {"resourceVersion": str(self.api._revision)}, "items": chosen}
            )

    def do_PATCH(self) -> None:
        self._answer(*self.api.change_node(self.path.rpartition("/")[2], self._body()))

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("/api/v1/namespaces/default/events"):
            self.api.events.append(body)
            self._answer(201, body)
        else:
            self._answer(*self.api.put_lease(body["metadata"]["name"], body, new=True))

    def do_PUT(self) -> None:
        self._answer(*self.api.put_lease(self.path.rpartition("/")[2], self._body(), new=False))

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, status: int, body: Any) -> None:
        if self.api.refuse and self.api.refuse[0][0] == self.command:
            status, body = self.api.refuse.pop(0)[1], {"kind": "Status", "status": "Failure"}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _watch(self, kind: str, store: dict[str, Any], query: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end = datetime.datetime.now() + datetime.timedelta(seconds=float(query.get("timeoutSeconds", 1)))
        since = int(query.get("resourceVersion", 0))
        if not since:
            since = self.api._revision
            for item in list(store.values()):
                self._event("ADDED", item)
        while (left := (end - datetime.datetime.now()).total_seconds()) > 0:
            with self.api.changed:
                new = [entry for entry in self.api.log if entry[0] > since and entry[1] == kind]
                if not new:
                    self.api.changed.wait(left)
                    continue
            for revision, _, event, item in new:
                since = revision
                selected = _selected(item, query.get("labelSelector", ""))
                self._event(event if selected else "DELETED", item)
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, kind: str, item: Any) -> None:
        data = json.dumps({"type": kind, "object": item}).encode() + b"\n"
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


def _selected(item: Any, selector: str) -> bool:
    return not selector or selector in (item["metadata"].get("labels") or {})


def _merge(target: dict[str, Any], change: dict[str, Any]) -> None:
    for key, value in change.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = value


def _certificate(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "double")])
    now = datetime.datetime.now(datetime.UTC)

    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = directory / "tls.crt", directory / "tls.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return certificate, secret
