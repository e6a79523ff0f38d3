"""Remote command as a client speaks it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.streaming import websocket
from cri.streaming.command import Input, InputEnded, Resized, WebSocketLink
from cri.streaming.status import Outcome, encode
from engines.base import Stdio
from forgeone_shim.cli.client import RemoteError
from forgeone_shim.cli.remote import STDERR, STDOUT, Detach, Output, Remote, exit_code
from forgeone_shim.errors import ForgeError, Unavailable

ALL = Stdio(stdin=True, stdout=True, stderr=True, tty=True)


def fed(remote: Remote, data: bytes, cuts: Sequence[int]) -> list[Output]:
    found, at = [], 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        found += remote.receive(data[at:cut])
        at = cut
    return found


@given(
    st.lists(st.tuples(st.sampled_from((STDOUT, STDERR)), st.binary(min_size=1, max_size=300))),
    st.integers(0, 255),
    st.lists(st.integers(0, 4000)),
)
def test_what_a_server_says_is_heard_however_it_is_cut(
    said: list[tuple[int, bytes]], code: int, cuts: list[int]
) -> None:
    link, remote = WebSocketLink(ALL, 5, encoded=False), Remote()
    for fd, data in said:
        link.send(fd, data)  # type: ignore[arg-type]
    link.finish(Outcome(code))
    heard = fed(remote, link.take(), cuts)
    for fd in (STDOUT, STDERR):
        assert b"".join(one.data for one in heard if one.fd == fd) == b"".join(data for to, data in said if to == fd)
    assert remote.over
    assert remote.outcome() == code


def test_a_server_hears_input_sizes_and_the_end() -> None:
    link, remote = WebSocketLink(ALL, 5, encoded=False), Remote()
    remote.input(b"typed")
    remote.resize(132, 50)
    remote.end_input()
    assert link.receive(remote.take()) == [Input(b"typed"), Resized(132, 50), InputEnded()]


def test_a_connection_that_ends_early_has_no_exit_code() -> None:
    with pytest.raises(Unavailable, match="before the command's exit code"):
        Remote().outcome()


def test_a_failure_is_told_in_the_servers_words() -> None:
    with pytest.raises(RemoteError, match="InternalError: there is no such command"):
        exit_code(encode(Outcome(error="there is no such command"), 5))


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"status":"Failure","reason":"NonZeroExitCode"}', b"[" * 99999])
def test_an_outcome_that_is_none_is_an_error(text: bytes) -> None:
    with pytest.raises(RemoteError, match="cannot be read"):
        exit_code(text)


@given(st.binary())
def test_no_bytes_make_it_fail_otherwise(data: bytes) -> None:
    remote = Remote()
    with contextlib.suppress(ForgeError):
        remote.receive(data)
        remote.outcome()


def test_what_is_no_websocket_is_an_error() -> None:
    with pytest.raises(RemoteError, match="the stream cannot be read"):
        Remote().receive(b"\xff\xff")
    conn = websocket.Connection(client=True)
    conn.send(b"masked, as only clients do")
    with pytest.raises(RemoteError):
        Remote().receive(conn.take())


@given(st.binary(), st.lists(st.integers(0, 100)))
def test_the_keys_that_let_go_are_found_however_they_arrive(typed: bytes, cuts: list[int]) -> None:
    detach, passed, gone, at = Detach(), b"", False, 0
    for cut in [*sorted(cut % (len(typed) + 1) for cut in cuts), len(typed)]:
        piece, gone = detach.feed(typed[at:cut])
        passed, at = passed + piece, cut
        if gone:
            break
    before, keys, _ = typed.partition(b"\x10\x11")
    assert gone is bool(keys)
    assert passed == before if gone else typed.removesuffix(b"\x10") == passed or typed == passed


def test_a_first_key_alone_is_passed_on_with_the_next() -> None:
    detach = Detach()
    assert detach.feed(b"a\x10") == (b"a", False)
    assert detach.feed(b"b") == (b"\x10b", False)
    assert detach.feed(b"\x10\x10") == (b"\x10", False)
    assert detach.feed(b"\x11c") == (b"", True)


def test_sizes_are_json_as_kubernetes_clients_write_it() -> None:
    remote, server = Remote(), websocket.Connection()
    remote.resize(80, 24)
    (piece,) = server.receive(remote.take())
    assert isinstance(piece, websocket.Piece)
    assert (piece.data[0], json.loads(piece.data[1:])) == (4, {"Width": 80, "Height": 24})
