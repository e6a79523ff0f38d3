#!/usr/bin/env python3
"""How long forgeone-admission takes to review pods: asked over HTTPS on one connection, as an API server does.

    python -m hack.bench.admission --rounds 2000 --policies 50

The server is a process of its own, and asks a double of an API server, on loopback. Told are milliseconds of whole
requests by a client in Python, and those of the review alone, as the server's own metrics have them.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cri.admission import api, following
from forgeone_shim.attestation import dsse
from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.cluster import objects
from forgeone_shim.contract.model import PAYLOAD_TYPE
from forgeone_shim.contract.parse import PREFIX
from hack.lab.api import ApiDouble, served

JSON = {"Content-Type": "application/json"}
NAMESPACE = "forgeone-system"


def policy(number: int) -> dict[str, Any]:
    """One of many: a floor with a rule, for some namespaces."""
    spec = {
        "floor": number % 10 == 0,
        "contract": {"profile": {"privileged": False, "host_paths": [], "images": ["ghcr.io/**", "docker.io/**"]}},
        "rules": [{"name": "labelled", "at": ["sandbox"], "expression": "'app' in pod.labels"}],
    }
    return {
        "apiVersion": objects.API_VERSION,
        "kind": objects.KIND,
        "metadata": {"name": f"policy-{number}"},
        "spec": spec,
    }


def reviews(key: SigningKey) -> dict[str, dict[str, Any]]:
    """What is asked about."""
    document = {
        "runtime_policy_id": "policy-1",
        "minimum_entropy": 256,
        "profile": {
            "capabilities": ["NET_BIND_SERVICE"],
            "volumes": ["config-map", "empty-dir", "projected", "secret"],
            "resources": {"memory": "512Mi", "cpu": "500m", "pids": 200},
            "network": {"egress": ["10.20.0.0/16 tcp/443", "pod:shop/db tcp/5432"], "ingress": ["any tcp/8080"]},
        },
        "rbac": {"exec": False, "attach": False},
        "containers": {"debug": {"profile": {"capabilities": []}}},
    }
    envelope = dsse.sign(dsse.Envelope(PAYLOAD_TYPE, json.dumps(document).encode()), key)
    signed = {f"{PREFIX}contract": dsse.encode(envelope).decode()}
    fields = {f"{PREFIX}exec": "false", f"{PREFIX}memory": "512Mi", f"{PREFIX}egress": "10.20.0.0/16 tcp/443"}
    return {
        "a pod without a contract": review({}, 3),
        "a pod with three annotations": review(fields, 3),
        "a pod with a signed document": review(signed, 3),
        "a pod of twenty containers, signed": review(signed, 20),
        "one that is refused": review({f"{PREFIX}exce": "false"}, 3),
    }


def review(annotations: Mapping[str, str], containers: int) -> dict[str, Any]:
    """A question about a pod of some size."""
    one = {
        "image": "ghcr.io/acme/web:1",
        "resources": {"limits": {"memory": "128Mi", "cpu": "250m"}},
        "securityContext": {"capabilities": {"drop": ["ALL"]}, "allowPrivilegeEscalation": False},
        "env": [{"name": f"NAME_{number}", "value": "value"} for number in range(20)],
        "volumeMounts": [{"name": "config", "mountPath": "/etc/web", "readOnly": True}],
    }
    pod = {
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}, "annotations": dict(annotations)},
        "spec": {
            "containers": [{"name": f"c{number}", **one} for number in range(containers)],
            "volumes": [{"name": "config", "configMap": {"name": "web"}}],
        },
    }
    request = {
        "uid": "00000000-0000-0000-0000-000000000000",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "operation": "CREATE",
        "namespace": "shop",
        "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
        "object": pod,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


@contextmanager
def serving(policies: int, key: SigningKey) -> Iterator[tuple[int, ssl.SSLContext]]:
    """The server, its port, and what makes it believed."""
    with tempfile.TemporaryDirectory() as directory, served(Path(directory)) as (double, kubeconfig):
        for number in range(policies):
            double.put(f"{following.POLICIES}/policy-{number}", policy(number))
        double.put(f"{api.configmaps(NAMESPACE)}/issuers", {"data": {"one.pub": key.public.pem().decode()}})
        for engine in ("native", "wasm", "microvm", "auto"):
            double.put(f"{following.CLASSES}/forgeone-{engine}", {"handler": f"forgeone-{engine}"})
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        argv = [sys.executable, "-m", "cri.admission.main", "--listen", f"127.0.0.1:{port}", "--issuers", "issuers"]
        argv += ["--kubeconfig", kubeconfig, "--log-level", "warning"]
        with subprocess.Popen(argv, env=os.environ) as process:
            try:
                yield port, _ready(double, port)
            finally:
                # The second does without the time in which endpoints are told.
                process.terminate()
                time.sleep(0.2)
                process.terminate()


def _ready(double: ApiDouble, port: int) -> ssl.SSLContext:
    secret = f"{api.secrets(NAMESPACE)}/forgeone-admission-tls"
    with double.changed:
        if not double.changed.wait_for(lambda: secret in double.objects, 30):
            raise SystemExit("no certificate was made")
        authority = base64.b64decode(double.objects[secret]["data"]["ca.crt"]).decode()
    context = ssl.create_default_context(cadata=authority)
    until = time.monotonic() + 30
    while True:
        try:
            if ask(connect(port, context), "GET", "/readyz", None) == 200:
                return context
        except OSError:
            pass
        if time.monotonic() > until:
            raise SystemExit("it did not become ready")
        time.sleep(0.05)


def connect(port: int, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    """A connection under the name that the certificate is for."""
    made = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=30)
    plain = socket.create_connection(("127.0.0.1", port), 30)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.sock = context.wrap_socket(plain, server_hostname=f"forgeone-admission.{NAMESPACE}.svc")
    return made


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None) -> int:
    """One request; its status."""
    connection.request(method, path, body, JSON if body else {})
    response = connection.getresponse()
    response.read()
    return response.status


def timed(port: int, context: ssl.SSLContext, body: bytes, rounds: int) -> list[float]:
    """Milliseconds of each request, on one connection."""
    connection, found = connect(port, context), []
    for _ in range(rounds):
        began = time.perf_counter()
        if ask(connection, "POST", "/validate", body) != 200:
            raise SystemExit("no answer")
        found.append((time.perf_counter() - began) * 1000)
    connection.close()
    return found


def told(name: str, spans: Sequence[float]) -> None:
    """A line of the table."""
    cuts = statistics.quantiles(spans, n=1000)
    print(f"{name:40} {statistics.median(spans):8.2f} {cuts[949]:8.2f} {cuts[989]:8.2f} {max(spans):8.2f}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Milliseconds of admission reviews.")
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--policies", type=int, default=50)
    parser.add_argument("--threads", type=int, default=8, help="connections at a time, for the last line")
    args = parser.parse_args()
    key = SigningKey.generate()
    with serving(args.policies, key) as (port, context):
        print(f"{'ms of a request':40} {'p50':>8} {'p95':>8} {'p99':>8} {'max':>8}")
        bodies = {name: json.dumps(one).encode() for name, one in reviews(key).items()}
        for name, body in bodies.items():
            timed(port, context, body, args.rounds // 20)
            told(name, timed(port, context, body, args.rounds))
        spans: list[float] = []
        body = bodies["a pod with a signed document"]
        each = args.rounds // args.threads

        def run() -> None:
            spans.extend(timed(port, context, body, each))

        began = time.perf_counter()
        threads = [threading.Thread(target=run) for _ in range(args.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told(f"that one, {args.threads} connections at a time", spans)
        print(f"{len(spans) / (time.perf_counter() - began):.0f} requests a second")
        connection = connect(port, context)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        sums = {
            line.split()[0]: float(line.split()[1])
            for line in lines
            if line.startswith("forgeone_admission_review_seconds_")
        }
        path = '{path="/validate"}'
        count, total = (sums[f"forgeone_admission_review_seconds_{one}{path}"] for one in ("count", "sum"))
        within = sums['forgeone_admission_review_seconds_bucket{le="0.01",path="/validate"}']
        print(f"of the server: {total / count * 1000:.2f} ms on average, {within / count:.2%} below 10 ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
