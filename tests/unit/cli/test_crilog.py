from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.cli.crilog import MAX_RECORD, Parser, Record, parse, tail

T = b"2016-10-06T00:17:09.669794202Z"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (T + b" stdout F hello world", Record(T, "stdout", False, b"hello world")),
        (T + b" stderr P par", Record(T, "stderr", True, b"par")),
        (T + b" stdout F ", Record(T, "stdout", False, b"")),
        (T + b" stdout F", Record(T, "stdout", False, b"")),
        (T + b" stdout P:x:y half", Record(T, "stdout", True, b"half")),
        (T + b" stdout F  two blanks", Record(T, "stdout", False, b" two blanks")),
        (b"no record at all", Record(b"", "stdout", False, b"no record at all")),
        (b"", Record(b"", "stdout", False, b"")),
    ],
)
def test_a_line_is_parsed(line: bytes, expected: Record) -> None:
    assert parse(line) == expected


def test_a_partial_line_is_joined_with_what_follows() -> None:
    records = Parser().feed(T + b" stdout P one, \n" + T + b" stdout F two\n")
    assert b"".join(record.output for record in records) == b"one, two\n"


lines = st.lists(
    st.tuples(
        st.sampled_from((b"stdout", b"stderr")),
        st.booleans(),
        st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")),
    )
)


@given(lines, st.lists(st.integers(1, 30)))
def test_pieces_of_any_size_give_the_same_records(content: list[tuple[bytes, bool, bytes]], sizes: list[int]) -> None:
    data = b"".join(
        T + b" " + stream + b" " + (b"P" if part else b"F") + b" " + text + b"\n" for stream, part, text in content
    )
    whole = [*(parser := Parser()).feed(data), *parser.end()]
    pieces: list[Record] = []
    parser = Parser()
    for size in [*sizes, len(data)]:
        piece, data = data[:size], data[size:]
        pieces += parser.feed(piece)
    pieces += [*parser.feed(data), *parser.end()]
    assert pieces == whole
    assert [(r.stream.encode(), r.partial, r.text) for r in whole] == content


@given(st.binary())
def test_no_bytes_break_the_parser(data: bytes) -> None:
    parser = Parser()
    records = [*parser.feed(data), *parser.end()]
    assert len(records) in (data.count(b"\n"), data.count(b"\n") + 1)


def test_a_record_that_never_ends_does_not_take_all_memory() -> None:
    assert list(Parser().feed(b"x" * (MAX_RECORD + 1)))


def test_tail_counts_whole_lines_not_pieces() -> None:
    def record(text: bytes, partial: bool = False) -> Record:
        return Record(T, "stdout", partial, text)

    records = [record(b"1"), record(b"2a", True), record(b"2b"), record(b"3")]
    assert tail(records, 2) == records[1:]
    assert tail(records, 0) == []
    assert tail(records, 9) == records
