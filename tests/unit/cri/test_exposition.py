"""What Prometheus reads, from the real port, over a runtime in memory."""

from __future__ import annotations

import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families as parsed

from cri.exposition import server as serving
from cri.exposition.calls import Calls
from cri.exposition.containers import families
from cri.exposition.exposition import Exposition
from cri.exposition.server import MetricsServer
from cri.translate import metrics
from engines.base import SandboxSpec
from forgeone_shim.config.model import MetricsConfig
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import InternalError, InvalidInput
from forgeone_shim.metrics.figures import OTHER, Kind, Tally, gauge
from tests.unit.cri.fakes import FakeRuntime
from tests.unit.streaming.test_server import certificate

ANY = MetricsConfig(address="127.0.0.1:0")


@pytest.fixture
def exposition(runtime: FakeRuntime) -> Iterator[Exposition]:
    tally = Tally("forgeone_denials_total", "Denials.", ("point", "rule"))
    tally.count("exec", "house/no-shells")
    made = Exposition(ANY, runtime, [lambda: [tally.figure()], lambda: [gauge("forgeone_x", "x", 3)]])
    made.start()
    yield made
    made.stop()


def read(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def values(text: str, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels[key] for key in sorted(sample.labels)): sample.value
        for family in parsed(text)
        for sample in family.samples
        if sample.name == name
    }


def test_the_node_tells_its_conditions_pods_and_handlers(exposition: Exposition, runtime: FakeRuntime) -> None:
    for name, handler in (("a", ""), ("b", "forgeone-wasm"), ("c", "forgeone-wasm")):
        spec = SandboxSpec(name=name, namespace="shop", uid=name, attempt=0, runtime_handler=handler)
        runtime.run_sandbox(spec, Deadline())
    text = read(exposition.port)
    told = values(text, "forgeone_condition")
    assert set(told) == {("RuntimeReady",), ("NetworkReady",), ("ConfigurationLoaded",), ("AuditLogSound",)}
    assert values(text, "forgeone_pods") == {("default", "true"): 1, ("forgeone-wasm", "true"): 2}
    assert values(text, "forgeone_images") == {(): 0}
    assert len(values(text, "forgeone_build_info")) == 1
    assert values(text, "process_resident_memory_bytes")[()] > 1_000_000


def test_what_rooms_tell_is_there(exposition: Exposition) -> None:
    text = read(exposition.port)
    assert values(text, "forgeone_denials_total") == {("exec", "house/no-shells"): 1}
    assert values(text, "forgeone_x") == {(): 3}
    assert "# TYPE forgeone_denials_total counter" in text


def test_containers_are_told_apart_from_the_node(exposition: Exposition) -> None:
    assert "container_" not in read(exposition.port)
    assert "forgeone_pods" not in read(exposition.port, "/metrics/containers")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        read(exposition.port, "/debug")


def test_samples_keep_the_names_and_labels_that_cadvisor_gave_them(runtime: FakeRuntime) -> None:
    runtime.run_sandbox(SandboxSpec(name="a", namespace="shop", uid="u", attempt=0), Deadline())
    found = families(runtime.meter.samples(runtime.sandboxes(), []))
    assert found

    class Registry(CollectorRegistry):
        def collect(self) -> Iterable[Any]:
            return found

    text = generate_latest(Registry()).decode()
    for family in parsed(text):
        for sample in family.samples:
            assert set(sample.labels) == set(metrics.DESCRIBED[sample.name].labels)
            assert (sample.labels["namespace"], sample.labels["pod"]) == ("shop", "a")


def test_calls_are_counted_by_code_and_streams_have_no_duration() -> None:
    registry = CollectorRegistry()
    calls = Calls(registry)
    calls("RunPodSandbox", "OK", 0.04)
    calls("RunPodSandbox", "FAILED_PRECONDITION", 0.002)
    calls("GetContainerEvents", "OK", None)
    text = generate_latest(registry).decode()
    assert values(text, "forgeone_cri_requests_total") == {
        ("OK", "RunPodSandbox"): 1,
        ("FAILED_PRECONDITION", "RunPodSandbox"): 1,
        ("OK", "GetContainerEvents"): 1,
    }
    assert values(text, "forgeone_cri_request_duration_seconds_count") == {("RunPodSandbox",): 2}


def test_the_server_tells_its_observer_of_every_end(runtime: FakeRuntime, directory: Path) -> None:
    from cri.api import runtime_pb2 as pb
    from cri.runtime.service import RuntimeService
    from cri.server import _Verb
    from tests.unit.cri.fakes import FakeStreaming

    seen: list[tuple[str, str, float | None]] = []
    service = RuntimeService(runtime, info={}, message_limit=1 << 20, streaming=FakeStreaming())
    [method] = [one for one in pb.DESCRIPTOR.services_by_name["RuntimeService"].methods if one.name == "Version"]
    verb = _Verb(method, service, lambda *told: seen.append(told))

    class Context:
        def time_remaining(self) -> None:
            return None

        def add_callback(self, _callback: Callable[[], None]) -> bool:
            return True

    verb.unary(pb.VersionRequest(), Context())  # type: ignore[arg-type]
    [(name, code, seconds)] = seen
    assert (name, code) == ("Version", "OK") and seconds is not None and 0 <= seconds < 10


def test_pods_cannot_fill_a_tally() -> None:
    tally = Tally("forgeone_x_total", "x", ("rule",))
    for number in range(2000):
        tally.count(f"rule-{number}")
    counted = dict(tally.figure().values)
    assert len(counted) == 513 and counted[OTHER,] == 2000 - 512
    assert tally.figure().kind is Kind.COUNTER


@contextmanager
def served(config: MetricsConfig, app: Callable[..., Iterable[bytes]]) -> Iterator[MetricsServer]:
    made = MetricsServer(config, {"/metrics": app})
    made.start()
    try:
        yield made
    finally:
        made.stop()


def fine(_environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
    start("200 OK", [])
    return [b"up 1\n"]


def test_a_metric_that_cannot_be_told_is_500_and_the_next_scrape_is_answered() -> None:
    def broken(_environ: dict[str, Any], _start: Callable[..., Any]) -> list[bytes]:
        raise ValueError("not a number")

    with served(ANY, broken) as server:
        for _ in range(serving.AT_ONCE + 1):
            with pytest.raises(urllib.error.HTTPError, match="500"):
                read(server.port)


def test_who_sends_nothing_is_hung_up_on_and_does_not_keep_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SECONDS", 0.4)
    with served(ANY, fine) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(serving.AT_ONCE)]
        began = time.monotonic()
        assert read(server.port) == "up 1\n"
        assert time.monotonic() - began < 8
        for one in idle:
            one.settimeout(5)
            with one, suppress(ConnectionError):
                assert one.recv(1) == b""


def test_a_client_that_trickles_meets_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SECONDS", 0.5)
    with served(ANY, fine) as server, socket.create_connection(("127.0.0.1", server.port)) as slow:
        began = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - began < 8:
                slow.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() - began < 8


def test_a_stop_does_not_wait_for_those_who_are_answered() -> None:
    with served(ANY, fine) as server:
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(serving.AT_ONCE + 2)]
        time.sleep(0.1)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 3
        for one in held:
            one.close()


def test_scrapes_come_by_tls_and_only_with_a_certificate_where_that_is_asked_for(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    plain = MetricsConfig(address="127.0.0.1:0", tls_cert_file=str(cert), tls_key_file=str(key))
    context = ssl.create_default_context(cafile=str(cert))
    context.check_hostname = False

    def scrape(config: MetricsConfig, context: ssl.SSLContext) -> bytes:
        with (
            served(config, fine) as server,
            socket.create_connection(("127.0.0.1", server.port), 5) as sock,
            context.wrap_socket(sock) as wire,
        ):
            wire.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            return b"".join(iter(lambda: wire.recv(4096), b""))

    assert scrape(plain, context).endswith(b"up 1\n")
    mutual = MetricsConfig(
        address="127.0.0.1:0", tls_cert_file=str(cert), tls_key_file=str(key), client_ca_file=str(cert)
    )
    refused = b""
    with suppress(OSError):
        refused = scrape(mutual, context)
    assert refused == b""
    context.load_cert_chain(cert, key)
    assert scrape(mutual, context).endswith(b"up 1\n")


@pytest.mark.parametrize("key", ["tls_key_file", "client_ca_file"])
def test_a_key_without_a_certificate_is_said_at_the_start(key: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=rf"metrics\.{key}: is given without tls_cert_file"):
        MetricsServer(MetricsConfig(address="127.0.0.1:0", **{key: str(tmp_path)}), {}).start()


def test_an_address_that_is_taken_is_said(exposition: Exposition) -> None:
    with pytest.raises(InternalError, match=r"metrics: cannot listen on 127\.0\.0\.1:"):
        MetricsServer(MetricsConfig(address=f"127.0.0.1:{exposition.port}"), {}).start()


def test_scrapes_beside_each_other_are_whole(exposition: Exposition) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(read(exposition.port))) for _ in range(12)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(20)
    assert len(found) == 12 and all("process_open_fds" in text for text in found)


def test_nothing_is_told_of_when_series_began(exposition: Exposition) -> None:
    exposition.calls("Version", "OK", 0.1)
    assert "_created" not in read(exposition.port)
