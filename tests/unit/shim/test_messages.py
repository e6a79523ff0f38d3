"""What the fork server and its clients say to each other."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.shim import messages
from forgeone_shim.shim.messages import Extent, Failed, Made, MakeNamespaces
from forgeone_shim.shim.wire import ProtocolError

_IDS = st.integers(0, 2**32 - 1)
_EXTENTS = st.lists(st.builds(Extent, _IDS, _IDS, _IDS), max_size=5).map(tuple)
_TEXT = st.text(max_size=20)
_REQUESTS = st.builds(
    MakeNamespaces,
    uids=_EXTENTS,
    gids=_EXTENTS,
    kinds=st.lists(st.sampled_from(["net", "uts", "ipc"]), max_size=3).map(tuple),
    hostname=_TEXT,
    sysctls=st.lists(st.tuples(_TEXT, _TEXT), max_size=3).map(tuple),
)


@given(_REQUESTS)
def test_a_request_arrives_as_it_was_sent(request_: messages.Request) -> None:
    assert messages.decode_request(messages.encode(request_)) == request_


@pytest.mark.parametrize(
    ("answer", "descriptors"),
    [(Made(kinds=("user", "net")), (8, 9)), (Failed(step="map ids", errno=1), ())],
)
def test_an_answer_arrives_as_it_was_sent(answer: messages.Answer, descriptors: tuple[int, ...]) -> None:
    assert messages.decode_answer(messages.encode(answer), descriptors) == answer


def test_descriptors_that_an_answer_does_not_name_are_refused() -> None:
    with pytest.raises(ProtocolError, match="2 descriptors"):
        messages.decode_answer(messages.encode(Made(kinds=("user",))), (8, 9))
    with pytest.raises(ProtocolError, match="1 descriptors"):
        messages.decode_answer(messages.encode(Failed(step="x", errno=1)), (8,))


@given(st.binary(max_size=200))
def test_noise_is_no_message(data: bytes) -> None:
    for decode in (messages.decode_request, lambda data: messages.decode_answer(data, ())):
        try:
            decode(data)
        except ProtocolError:
            continue


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "make"},
        {"more": 1},
        {"uids": [[0, 1]]},
        {"uids": [[0, "1", 2]]},
        {"uids": [[0, 1, 2, 3]]},
        {"hostname": None},
    ],
)
def test_a_request_that_is_not_exactly_as_known_is_refused(changed: dict[str, object]) -> None:
    good = MakeNamespaces(uids=(Extent(0, 1, 2),), gids=(), kinds=(), hostname="", sysctls=())
    document = msgspec.json.decode(messages.encode(good)) | changed
    with pytest.raises(ProtocolError):
        messages.decode_request(msgspec.json.encode(document))


def test_a_message_that_would_be_cut_is_not_sent() -> None:
    long = MakeNamespaces(uids=(), gids=(), kinds=(), hostname="x" * messages.MESSAGE_MAX, sysctls=())
    with pytest.raises(ProtocolError, match="longer"):
        messages.encode(long)
