"""What an entry says, and that it says it in 64 KiB."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.audit import entry
from forgeone_shim.audit.entry import MAX_ENTRY, Entry
from forgeone_shim.errors import FailedPrecondition, ForgeError

MADE = Entry(type="container.started", subject="container/1", data={"a": 1}, at=1_700_000_000_000_000_001, monotonic=7)


def test_an_entry_is_a_cloud_event() -> None:
    assert json.loads(entry.encode(MADE, "node/forgeone/1", 3)) == {
        "specversion": "1.0",
        "id": "3",
        "source": "node/forgeone/1",
        "type": "dev.forgeone.container.started",
        "subject": "container/1",
        "time": "2023-11-14T22:13:20.000000001Z",
        "datacontenttype": "application/json",
        "monotonic": "7",
        "data": {"a": 1},
    }


def test_it_reads_as_it_was_written() -> None:
    found = entry.decode(entry.encode(MADE, "o", 3))
    assert (found.id, found.subject, found.data) == ("3", "container/1", {"a": 1})


def test_what_is_too_long_is_cut_and_its_hash_told() -> None:
    long = Entry(type="x", subject="s", data={"message": "m" * 10_000})
    text = entry.decode(entry.encode(long, "o", 0)).data["message"]
    assert text.startswith("m" * entry.MAX_TEXT + "… (sha256:")
    many = Entry(type="x", subject="s", data={"pod": {"name": "web"}, "list": ["y" * 1000] * 100})
    data = entry.encode(many, "o", 0)
    assert len(data) <= MAX_ENTRY
    assert entry.decode(data).data["pod"] == {"name": "web"}
    assert set(entry.decode(data).data["list"]) == {"bytes", "sha256"}
    keys = Entry(type="x", subject="s", data={str(number): "z" * 100 for number in range(1000)})
    data = entry.encode(keys, "o", 0)
    assert len(data) <= MAX_ENTRY
    assert set(entry.decode(data).data) == {"bytes", "sha256"}


def test_a_subject_without_end_is_cut() -> None:
    made = entry.encode(Entry(type="x", subject="s" * 100_000), "o", 0)
    assert entry.decode(made).subject == "s" * entry.MAX_TEXT


def nested(depth: int) -> list[object]:
    found: list[object] = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize("value", ["\ud800", object(), {1j}, nested(100_000)], ids=lambda value: type(value).__name__)
def test_what_is_no_json_is_logged_all_the_same(value: object) -> None:
    made = Entry(type="x", subject="s", data={"value": value})
    assert "unreadable" in entry.decode(entry.encode(made, "o", 0)).data


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"datacontenttype": "text/plain"}, "datacontenttype"),
        ({"id": "x"}, "id"),
        ({"monotonic": "-1"}, "monotonic"),
        ({"type": "com.example"}, "type"),
        ({"more": 1}, "more"),
        ({"data": []}, "data"),
        ({"time": None}, "time"),
    ],
)
def test_another_event_is_refused_by_its_field(change: dict[str, object], named: str) -> None:
    data = json.loads(entry.encode(MADE, "o", 3)) | change
    with pytest.raises(FailedPrecondition, match=named):
        entry.decode(json.dumps(data).encode())


@given(st.binary(max_size=200))
def test_whatever_is_read_is_an_entry_or_an_error(data: bytes) -> None:
    with pytest.raises(ForgeError):
        entry.decode(data)


def test_an_entry_that_is_nested_without_end_is_refused() -> None:
    with pytest.raises(FailedPrecondition):
        entry.decode(b'{"data":' + b"[" * 200_000)
