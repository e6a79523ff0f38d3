"""What ``forge port-forward`` takes, and where it listens."""

from __future__ import annotations

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.cli.forward import Pair, listen, pair
from forgeone_shim.errors import FailedPrecondition, InvalidInput


@pytest.mark.parametrize(
    ("text", "found"),
    [("80", Pair(80, 80)), ("8080:80", Pair(8080, 80)), (":80", Pair(0, 80)), ("65535:1", Pair(65535, 1))],
)
def test_ports_are_written_as_for_kubectl(text: str, found: Pair) -> None:
    assert pair(text) == found


@pytest.mark.parametrize(
    "text", ["", ":", "80:", "0", "0:80", "80:0", "65536", "a", "1:2:3", "-1", "+1", "８０", " 80"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not PORT"):
        pair(text)


@given(st.text())
def test_no_text_makes_it_fail_otherwise(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        assert 0 < pair(text).remote < 1 << 16


def test_it_listens_on_every_loopback_address_at_one_port_and_nowhere_else() -> None:
    listeners = listen(0)
    try:
        names = [listener.getsockname()[:2] for listener in listeners]
        assert names[0][0] == "127.0.0.1"
        assert {host for host, _ in names} <= {"127.0.0.1", "::1"}
        assert len({port for _, port in names}) == 1
        with pytest.raises(FailedPrecondition, match="cannot be listened on"):
            listen(names[0][1])
    finally:
        for listener in listeners:
            listener.close()


def test_nothing_stays_open_where_one_address_is_taken() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FailedPrecondition):
            listen(port)
        with socket.create_server(("127.0.0.1", port)):
            pass
