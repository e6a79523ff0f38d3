"""Fields of messages: the same on both ways, and nothing else is taken."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.microvm.boot.agent import SOURCES
from engines.microvm.wire import header
from engines.microvm.wire.fields import FieldType, ProtocolError, decode, encode, numbered, rules
from engines.microvm.wire.messages import Caps, Create, Exec, Hello, Interface, Program, Rlimit, Rootfs, Signal, Update
from engines.microvm.wire.protocol import REQUEST_MAX, Tag
from forgeone_shim.errors import InvalidInput
from tests.unit.microvm.told import MESSAGES, messages

NO_CAPS = Caps(bounding=0, effective=0, permitted=0, inheritable=0, ambient=0)
PROGRAM = Program(args=("sh",), cwd="/", uid=0, gid=0, caps=NO_CAPS)


def field(tag: int, data: bytes) -> bytes:
    return struct.pack("<HI", tag, len(data)) + data


def number(tag: int, value: int) -> bytes:
    return field(tag, struct.pack("<Q", value))


@pytest.mark.parametrize("name", ["protocol", "schema"])
def test_the_agents_headers_are_made_from_what_the_host_says(name: str) -> None:
    made = {"protocol": header.header, "schema": header.schema}[name]()
    assert (SOURCES / f"{name}.h").read_text() == made


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_what_is_said_is_what_is_heard(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    said = data.draw(messages(kind))
    assert decode(kind, encode(said)) == said


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=200))
def test_no_bytes_are_too_strange_to_be_refused(kind: type[msgspec.Struct], data: bytes) -> None:
    with suppress(ProtocolError):
        decode(kind, data)


def test_no_tag_is_twice_in_a_struct_and_bounds_are_some() -> None:
    for kind in MESSAGES:
        found = rules(kind)
        assert len({rule.tag for rule in found}) == len(found)
        for rule in found:
            assert rule.low <= rule.high
            assert rule.shape is not FieldType.NUMBER or rule.low + rule.offset >= 0


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"", "version"),
        (b"\1", ""),
        (field(Tag.VERSION, b"1234567"), "version"),
        (number(Tag.VERSION, 1) * 2, "version"),
        (number(Tag.VERSION, 1) + number(Tag.ERRNO, 1), ""),
        (number(999, 1), ""),
        (number(Tag.VERSION, 1)[:-1], "version"),
        (struct.pack("<HI", Tag.VERSION, 0xFFFFFFFF), "version"),
        (bytes(REQUEST_MAX + 1), ""),
    ],
)
def test_a_message_that_is_not_whole_or_has_too_much_is_refused(data: bytes, where: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(Hello, data)
    assert caught.value.field == where


@pytest.mark.parametrize("text", [b"a\0b", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"x" * 129])
def test_a_text_is_utf_8_without_nul_and_within_its_bounds(text: bytes) -> None:
    with pytest.raises(ProtocolError, match="container"):
        decode(Signal, field(Tag.CONTAINER, text) + number(Tag.SIGNO, 9))


@pytest.mark.parametrize(
    ("change", "field_"),
    [
        ({"args": ()}, "program.args"),
        ({"args": ("a", "b\0c")}, "program.args[1]"),
        ({"uid": 1 << 32}, "program.uid"),
        ({"oom_score_adj": -1001}, "program.oom_score_adj"),
        ({"cwd": ""}, "program.cwd"),
        ({"cwd": "\udc80"}, "program.cwd"),
        ({"rlimits": (Rlimit(resource=16, soft=0, hard=0),)}, "program.rlimits[0].resource"),
    ],
)
def test_what_cannot_be_said_is_not_said_and_the_field_named(change: dict[str, Any], field_: str) -> None:
    what = Exec(container="a", program=msgspec.structs.replace(PROGRAM, **change))
    with pytest.raises(InvalidInput) as caught:
        encode(what)
    assert caught.value.field == field_


def test_what_is_larger_than_a_request_may_be_is_not_said() -> None:
    large = msgspec.structs.replace(PROGRAM, env=("x" * 100_000,) * 11)
    with pytest.raises(InvalidInput, match="more than"):
        encode(Exec(container="a", program=large))


def test_a_number_below_zero_travels() -> None:
    program = msgspec.structs.replace(PROGRAM, oom_score_adj=-998)
    data = encode(program)
    assert number(Tag.OOM_SCORE_ADJ, 2) in data
    assert decode(Program, data) == program


def test_a_keeper_adds_the_number_of_a_process_to_what_it_does_not_read() -> None:
    what = Create(container="a", rootfs=Rootfs(lun=1, fstype="erofs"), program=PROGRAM)
    assert decode(Create, numbered(encode(what), 7)) == msgspec.structs.replace(what, process=7)
    with pytest.raises(ProtocolError, match="twice"):
        decode(Create, numbered(numbered(encode(what), 7), 7))
    with pytest.raises(InvalidInput):
        numbered(bytes(REQUEST_MAX - 1), 7)


def test_what_is_as_its_default_is_left_out() -> None:
    assert encode(Update(container="a")) == field(Tag.CONTAINER, b"a")
    interface = Interface(name="eth0", mac=bytes(6), mtu=1500)
    assert len(encode(interface)) == 6 + 4 + 6 + 6 + 6 + 8
