"""What a monitor may answer, and what becomes of what it should not; and the events of Cloud Hypervisor."""

from __future__ import annotations

import array
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.microvm.vmm.base import Accel, Event, Machine
from engines.microvm.vmm.cloud_hypervisor import Happened, config
from engines.microvm.vmm.firecracker import DISKS, requests
from engines.microvm.vmm.rest import Rest
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, InternalError

Talk = Callable[[socket.socket], None]
Serve = Callable[..., Rest]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A monitor that does as each of these in turn, with a connection each."""
    threads: list[threading.Thread] = []
    rests: list[Rest] = []

    def make(*talks: Talk) -> Rest:
        waiting = list(talks)

        def connect() -> socket.socket:
            ours, theirs = socket.socketpair()
            talk = waiting.pop(0)

            def run() -> None:
                with theirs, suppress(OSError):
                    talk(theirs)

            threads.append(threading.Thread(target=run))
            threads[-1].start()
            return ours

        rests.append(Rest("the monitor", connect, "/api"))
        return rests[-1]

    yield make
    for rest in rests:
        rest.close()
    for thread in threads:
        thread.join()


def says(*answers: bytes) -> Talk:
    """Each to one request; then it waits for the other side's end."""

    def talk(connection: socket.socket) -> None:
        for answer in answers:
            assert connection.recv(65536)
            connection.sendall(answer)
        connection.recv(1)

    return talk


def soon() -> Deadline:
    return Deadline.after(5)


def test_requests_go_over_one_connection_and_answers_are_json(serve: Serve) -> None:
    seen: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        for answer in (b"204 No Content\r\n\r\n", b'200 OK\r\nContent-Length: 7\r\n\r\n{"a":1}'):
            seen.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.1 " + answer)

    rest = serve(talk)
    assert rest.put("/x", {"b": 2}, soon()) is None
    assert rest.get("/y", soon()) == {"a": 1}
    assert seen == [
        b"PUT /api/x HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
        b'Content-Type: application/json\r\nContent-Length: 7\r\n\r\n{"b":2}',
        b"GET /api/y HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n",
    ]


def test_descriptors_go_along(serve: Serve) -> None:
    read, write = os.pipe()

    def talk(connection: socket.socket) -> None:
        _, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(4))
        (fd,) = array.array("i", ancillary[0][2])
        os.write(fd, b"here")
        os.close(fd)
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    serve(talk).put("/net", {}, soon(), fds=(write,))
    assert os.read(read, 10) == b"here"
    os.close(read)
    os.close(write)


def test_after_one_that_was_closed_another_connection_is_made(serve: Serve) -> None:
    rest = serve(
        says(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"), says(b"HTTP/1.1 204 No Content\r\n\r\n")
    )
    rest.put("/x", None, soon())
    rest.put("/x", None, soon())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"fault_message": "no such disk"}', "no such disk"),
        (b'["Error from API", "no such disk"]', "Error from API; no such disk"),
        (b"plain", "plain"),
        (b"", "without a reason"),
        (b"[" * 100_000, r"\[\[\["),
        (b"x" * 5000, "x" * 1000 + "$"),
    ],
)
def test_a_refusal_is_told_with_its_reason(serve: Serve, content: bytes, reason: str) -> None:
    answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    with pytest.raises(InternalError, match=rf"the monitor refuses PUT /x \(400\): {reason}"):
        serve(says(answer)).put("/x", {}, soon())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{]}", "answers GET /x with what is no JSON"),
        (b"SSH-2.0\r\n\r\n", "does not answer GET /x"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500, "does not answer GET /x"),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 100_000, "does not answer GET /x"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + bytes(1_100_000), "answers GET /x with more than"),
    ],
)
def test_what_is_no_answer_is_told_and_takes_no_room(serve: Serve, answer: bytes, message: str) -> None:
    with pytest.raises(InternalError, match=f"the monitor {message}"):
        serve(says(answer)).get("/x", soon())


def test_one_that_goes_away_is_told(serve: Serve) -> None:
    with pytest.raises(InternalError, match="the monitor does not answer GET /x"):
        serve(lambda connection: None).get("/x", soon())


def test_byte_after_byte_is_no_way_to_be_waited_for(serve: Serve) -> None:
    def talk(connection: socket.socket) -> None:
        for byte in b"HTTP/1.1 200 OK" + b" " * 1000:
            connection.send(bytes([byte]))
            time.sleep(0.02)

    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="the monitor was asked for /x"):
        serve(talk).get("/x", Deadline.after(0.2))
    assert time.monotonic() - started < 2


def event(name: str, source: str = "vm") -> str:
    said = {"timestamp": {"secs": 1, "nanos": 2}, "source": source, "event": name, "properties": {"a": "{}"}}
    return json.dumps(said, indent=2) + "\n\n"


@given(st.lists(st.integers(1, 200), max_size=20))
def test_events_are_read_in_whatever_pieces_they_come(cuts: list[int]) -> None:
    data = "".join((event("booting"), event("rebooting"), event("shutdown", "other"), event("shutdown"))).encode()
    happened, found = Happened(), []
    with ExitStack() as theirs:
        write = happened.open(theirs)
        while data:
            cut = cuts.pop() if cuts else len(data)
            os.write(write, data[:cut])
            data = data[cut:]
            found += list(happened.read())
    assert found == [Event("reset"), Event("shutdown")]
    assert list(happened.read()) == []
    assert happened.fds == ()


@pytest.mark.parametrize("data", [b"no event", b"[1]", b'"text"'])
def test_what_is_no_event_ends_the_machine(data: bytes) -> None:
    happened = Happened()
    with ExitStack() as theirs:
        os.write(happened.open(theirs), data)
        assert [one.name for one in happened.read()] == ["failed"]
        assert (list(happened.read()), happened.fds) == ([], ())


def test_an_event_without_end_takes_no_more_than_its_room() -> None:
    happened, found = Happened(), []
    with ExitStack() as theirs:
        write = happened.open(theirs)
        os.write(write, b'{"a": "')
        for _ in range(100):
            if not happened.fds:
                break
            os.write(write, b"x" * 8192)
            found += list(happened.read())
    assert [one.name for one in found] == ["failed"]
    happened.close()


def machine(vcpus: int) -> Machine:
    return Machine(
        memory=256 << 20, vcpus=vcpus, accel=Accel.KVM, kernel="/k", initrd="/i", cmdline="quiet", ports=("a", "b")
    )


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (2, 2), (3, 4), (31, 32)])
def test_firecracker_has_one_processor_or_an_even_number(asked: int, given: int) -> None:
    made = dict(requests(machine(asked), "tap0", "/place/empty"))
    assert made["/machine-config"]["vcpu_count"] == given
    assert made["/network-interfaces/net0"] == {"iface_id": "net0", "host_dev_name": "tap0"}
    assert sum(path.startswith("/drives/") for path in made) == DISKS


def test_a_machine_of_firecracker_has_an_interrupt_for_each_device() -> None:
    """Numbers 5 to 23, of which two are for what it has by itself (VMGenID, VMClock)."""
    ours = [path for path, _ in requests(machine(1), "tap0", "/e") if path not in {"/machine-config", "/boot-source"}]
    assert len(ours) + 2 <= 23 - 5 + 1


def test_cloud_hypervisor_has_neither_terminal_nor_other_devices() -> None:
    made = config(machine(2))
    assert (made["serial"], made["console"]) == ({"mode": "Off"}, {"mode": "Off"})
    assert "net" not in made
    assert "disks" not in made
