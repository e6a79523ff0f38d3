"""A bundle that runs this checkout, and a kubelet that does no more than ask its runtime and say that it is healthy."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

from forgeone_shim.node import layout
from hack.lab.daemon import REPOSITORY

HEALTHZ = 10248
KUBELET = f"""\
#!{sys.executable}
import http.server, sys
sys.path.insert(0, {str(REPOSITORY)!r})
import grpc
from cri.api import runtime_pb2 as cri, runtime_pb2_grpc
[endpoint] = [word.partition("=")[2] for word in sys.argv if word.startswith("--container-runtime-endpoint=")]
runtime = runtime_pb2_grpc.RuntimeServiceStub(grpc.insecure_channel(endpoint))
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30)
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *_): pass
runtime.Version(cri.VersionRequest(), timeout=30)
http.server.HTTPServer(("127.0.0.1", {HEALTHZ}), Answer).serve_forever()
"""
UNIT = """\
[Service]
ExecStart={program} $KUBELET_KUBEADM_ARGS
Restart=always
RestartSec=1
"""


def bundle(directory: Path, version: str, *, broken: bool = False) -> Path:
    """A bundle whose forgeoned is this checkout's, and says that it is of ``version``; a broken one ends at once."""
    service = (REPOSITORY / "hack/systemd/forgeoned.service").read_text()
    prefix = layout.version_directory(version)
    serve = f"import forgeone_shim.version as v; v.VERSION = {version!r}; from cri.daemon import main; main()"
    content = {
        "bin/forgeoned": f'#!/bin/sh\nexec {"false" if broken else sys.executable} -c {json.dumps(serve)} "$@"\n',
        "bin/forge": f'#!/bin/sh\nexec {Path(sys.executable).with_name("forge")} "$@"\n',
        "share/systemd/forgeoned.service": service.replace("/opt/forgeone/.venv", prefix),
    }
    files = {}
    for name, text in content.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        mode = 0o755 if name.startswith("bin/") else 0o644
        path.chmod(mode)
        digest = hashlib.sha256(text.encode()).hexdigest()
        files[name] = {"mode": f"{mode:04o}", "size": len(text.encode()), "sha256": digest}
    manifest = {"manifest": 1, "name": "forgeone", "version": version, "arch": os.uname().machine, "prefix": prefix}
    manifest |= {"unit": "share/systemd/forgeoned.service", "files": files, "links": {}}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory
