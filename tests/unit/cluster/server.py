"""An API server of ZTAPolicy objects over HTTPS: its answers have the form of a real one's, which were recorded."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from forgeone_shim.cluster import names

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("recorded.json").read_text())
ALL = f"/apis/{names.API_VERSION}/{names.PLURAL}"
EVENTS = "/api/v1/namespaces/default/events"
TOKEN = "Bearer the-node"


def recorded(name: str) -> dict[str, Any]:
    """The first document of a recorded answer."""
    found: dict[str, Any] = deepcopy(RECORDED[name]["documents"][0])
    return found


class ApiServer:
    """Started in the ``with`` block. ``deny`` is a status that every request gets, ``limit`` what a page has."""

    def __init__(self, directory: Path, port: int = 0) -> None:
        self.directory, self.changed = directory, threading.Condition()
        self.objects: dict[str, dict[str, Any]] = {}
        self.history: list[tuple[int, str, dict[str, Any]]] = []
        self.version, self.forgotten, self.serial = 100, 0, 0
        self.events: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.deny = 0
        self._held = False
        self.limit = 0
        self.hang_up = False
        self.token = TOKEN
        certificate = directory / "server.pem"
        if not certificate.exists():
            _certificate(certificate)
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._server.server_address[1]
        self.kubeconfig = directory / "kubelet.conf"
        self._configure()

    def __enter__(self) -> ApiServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Gone, with every connection."""
        with self.changed:
            self.hang_up = True
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def put(self, name: str, spec: Any) -> None:
        """Make an object, or change it."""
        with self.changed:
            before = self.objects.get(name)
            made = deepcopy(before) if before else recorded("last_page")["items"][0]
            metadata = made["metadata"]
            if before is None:
                self.serial += 1
                metadata |= {"name": name, "uid": f"00000000-0000-4000-8000-{self.serial:012}", "generation": 0}
                made.pop("status", None)
            metadata["generation"] += 1
            self._store("ADDED" if before is None else "MODIFIED", made | {"spec": spec})

    def delete(self, name: str) -> None:
        """Remove an object."""
        with self.changed:
            self._store("DELETED", self.objects[name])
            del self.objects[name]

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Connections are taken and nothing is answered, as where all of a server's time goes elsewhere."""
        self._held = True
        try:
            yield
        finally:
            with self.changed:
                self._held = False
                self.changed.notify_all()

    def forget(self) -> None:
        """Watches from versions before now are too old, and those under way end."""
        with self.changed:
            self.version += 1
            self.forgotten, self.hang_up = self.version, True
            self.changed.notify_all()

    def condition(self, name: str) -> dict[str, Any]:
        """The condition of an object; empty: there is none."""
        with self.changed:
            return dict(*self.objects[name].get("status", {}).get("conditions", [{}])[:1])

    def _store(self, kind: str, made: dict[str, Any]) -> None:
        self.version += 1
        made = deepcopy(made)
        made["metadata"]["resourceVersion"] = str(self.version)
        self.objects[made["metadata"]["name"]] = made
        self.history.append((self.version, kind, made))
        self.changed.notify_all()

    def _configure(self) -> None:
        text = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "c",
                    "cluster": {
                        "server": f"https://127.0.0.1:{self.port}",
                        "certificate-authority": "server.pem",
                    },
                }
            ],
            "users": [{"name": "u", "user": {"tokenFile": str(self.directory / "token")}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        (self.directory / "token").write_text(self.token.removeprefix("Bearer "))
        self.kubeconfig.write_text(yaml.safe_dump(text))
        self.kubeconfig.chmod(0o600)

    def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def answer(self, status: int, body: Any, **headers: str) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                for key, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(key.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def refused(self) -> bool:
                server.asked.append(f"{self.command} {self.path}")
                with server.changed:
                    server.changed.wait_for(lambda: not server._held, 20)
                if self.headers["Authorization"] != server.token:
                    self.answer(401, recorded("unauthorized"))
                elif server.deny:
                    self.answer(server.deny, recorded("forbidden") | {"code": server.deny})
                else:
                    return False
                return True

            def do_GET(self) -> None:
                if self.refused():
                    return
                query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
                if "watch" in query:
                    self.watched(int(query["resourceVersion"]), float(query["timeoutSeconds"]))
                    return
                with server.changed:
                    items = [server.objects[name] for name in sorted(server.objects)]
                    first = int(query.get("continue", "0"))
                    most = server.limit or len(items)
                    body = recorded("page") | {"items": items[first : first + most]}
                    more = str(first + most) if first + most < len(items) else ""
                    body["metadata"] = {"continue": more, "resourceVersion": str(server.version)}
                self.answer(200, body)

            def watched(self, version: int, seconds: float) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                if version < server.forgotten:
                    self.chunk(recorded("expired_version"))
                    self.wfile.write(b"0\r\n\r\n")
                    server.hang_up = False
                    return
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    with server.changed:
                        if server.hang_up:
                            break
                        due = [one for one in server.history if one[0] > version]
                        if not due:
                            server.changed.wait(0.2)
                    for at, kind, made in due:
                        self.chunk({"type": kind, "object": made})
                        version = at
                self.close_connection = True
                self.wfile.write(b"0\r\n\r\n")

            def chunk(self, event: Any) -> None:
                data = json.dumps(event).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

            def do_PATCH(self) -> None:
                patch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.refused():
                    return
                assert self.headers["Content-Type"] == "application/merge-patch+json"
                name = urlsplit(self.path).path.removeprefix(f"{ALL}/").removesuffix("/status")
                with server.changed:
                    known = server.objects.get(name)
                    if known is None:
                        self.answer(404, recorded("no_object"))
                    elif known["metadata"]["resourceVersion"] != patch["metadata"]["resourceVersion"]:
                        self.answer(409, recorded("conflict"))
                    else:
                        server._store("MODIFIED", known | {"status": patch["status"]})
                        self.answer(200, server.objects[name])

            def do_POST(self) -> None:
                event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.refused():
                    return
                assert urlsplit(self.path).path == EVENTS
                with server.changed:
                    there = any(one["metadata"]["name"] == event["metadata"]["name"] for one in server.events)
                    server.events += [] if there else [event]
                self.answer(*((409, recorded("event_again")) if there else (201, recorded("event"))))

        return Handler


def _certificate(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "double")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, *form) + made.public_bytes(serialization.Encoding.PEM)
    )
