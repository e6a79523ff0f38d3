from __future__ import annotations

import errno
import struct

from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.kernel.netlink import (
    Reply,
    attribute,
    attributes,
    iterate_attributes,
    nested,
    parse_ack,
    split_messages,
    text,
    u32,
)
from forgeone_shim.network import links

_ITEMS = st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40)), max_size=8)


@given(_ITEMS)
def test_items_come_back_as_they_were_packed(items: list[tuple[int, bytes]]) -> None:
    packed = b"".join(attribute(kind, payload) for kind, payload in items)
    assert len(packed) % 4 == 0
    assert list(iterate_attributes(packed)) == items


@given(st.binary(max_size=200))
def test_no_bytes_break_the_readers(data: bytes) -> None:
    for _, payload in iterate_attributes(data):
        attributes(payload)
    assert sum(len(body) + 16 for *_, body in split_messages(data)) <= len(data)


def test_nested_items_and_numbers_are_read_back() -> None:
    outer = attributes(nested(18, text(1, "veth"), u32(4, 1500)))
    inner = attributes(outer[18])
    assert inner[1] == b"veth\0"
    assert struct.unpack("=I", inner[4]) == (1500,)


def test_the_kernels_own_words_are_read_from_a_refusal() -> None:
    header = struct.pack("=IHHII", 36, 16, 5, 7, 0)
    body = struct.pack("=i", -errno.EINVAL) + header + text(1, "no such thing")
    assert parse_ack(0x300, body) == (errno.EINVAL, "no such thing")
    assert parse_ack(0x100, body) == (errno.EINVAL, "")
    uncapped = struct.pack("=i", -errno.EPERM) + header + b"x" * 20 + text(1, "not you")
    assert parse_ack(0x200, uncapped) == (errno.EPERM, "not you")
    assert parse_ack(0, struct.pack("=i", 0) + header) == (0, "")


def test_a_link_is_read_from_the_kernels_answer() -> None:
    body = struct.pack("=BxHiII", 0, 1, 7, 0x1043, 0) + text(3, "forge0") + u32(4, 1400) + u32(10, 3)
    body += attribute(1, bytes.fromhex("0a580a580001")) + nested(18, text(1, "bridge"))
    (link,) = links.parse_links([Reply(16, body), Reply(20, b"")])
    assert link == links.Link(7, "forge0", "bridge", 1400, "0a:58:0a:58:00:01", up=True, master=3)
