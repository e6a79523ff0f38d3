"""Lines of a CRI log, however the text came."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.shim.crilog import LINE_MAX, Clock, Lines
from forgeone_shim.shim.journal import pieces

STAMP = b"2026-01-02T03:04:05.000000006Z"
TEXT = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.just(b"\n"),
        st.sampled_from([LINE_MAX - 1, LINE_MAX, LINE_MAX + 1, 2 * LINE_MAX, 3 * LINE_MAX + 5]).map(lambda n: b"x" * n),
    ),
    max_size=12,
).map(b"".join)


def _logged(parts: list[bytes]) -> bytes:
    lines = Lines("stdout")
    return b"".join(lines.feed(part, STAMP) for part in parts) + lines.end(STAMP)


@given(TEXT, st.lists(st.integers(1, 40_000), max_size=8))
def test_how_it_was_cut_makes_no_difference_and_nothing_is_lost(text: bytes, cuts: list[int]) -> None:
    parts, rest = [], text
    for cut in cuts:
        parts.append(rest[:cut])
        rest = rest[cut:]
    logged = _logged([part for part in [*parts, rest] if part])
    assert logged == _logged([text])
    back = b""
    for line in logged.split(b"\n")[:-1]:
        found = re.fullmatch(re.escape(STAMP) + rb" stdout ([FP]) (.*)", line, re.DOTALL)
        assert found
        assert len(found[2]) <= LINE_MAX
        assert found[1] == b"F" or len(found[2]) == LINE_MAX
        back += found[2] + (b"\n" if found[1] == b"F" else b"")
    assert back.removesuffix(b"\n") == text.removesuffix(b"\n")


def test_a_line_as_long_as_may_be_is_one() -> None:
    assert _logged([b"x" * LINE_MAX, b"\n"]).count(b"\n") == 1
    assert b" P " not in _logged([b"x" * LINE_MAX + b"\n"])


def test_empty_lines_are_lines() -> None:
    assert _logged([b"\n\n"]) == (STAMP + b" stdout F \n") * 2
    assert _logged([]) == b""


def test_times_are_utc_with_nanoseconds() -> None:
    clock = Clock()
    assert clock.stamp(1_767_323_045_000_000_006) == b"2026-01-02T03:04:05.000000006Z"
    assert clock.stamp(1_767_323_046_999_999_999) == b"2026-01-02T03:04:06.999999999Z"


@given(st.lists(st.binary(max_size=50).map(lambda text: text.replace(b"\n", b"") + b"\n")), st.integers(1, 200))
def test_pieces_are_whole_lines(lines: list[bytes], size: int) -> None:
    text = b"".join(lines)
    found = list(pieces(text, size))
    assert b"".join(found) == text
    assert all(piece.endswith(b"\n") and (len(piece) <= size or piece.count(b"\n") == 1) for piece in found)
