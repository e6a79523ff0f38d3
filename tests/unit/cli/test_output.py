from __future__ import annotations

import json

import pytest

from cri.api import runtime_pb2 as cri
from forgeone_shim.cli.output import age, enum_name, plain, print_json, printable, short, size, table


def test_columns_are_aligned_and_lines_have_no_trailing_blanks() -> None:
    assert table(("A", "BB"), [("long", ""), ("x", "y")]) == "A     BB\nlong\nx     y\n"


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[31mb\nc") == "a\\x1b[31mb\\nc"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0B"), (999, "999B"), (1000, "1kB"), (4_213_000, "4.21MB"), (999_600, "1MB"), (5e15, "5PB")]
)
def test_sizes_have_three_digits(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (61, "1m1s"), (3600, "1h"), (90061, "1d1h"), (86400 * 366, "1y1d")]
)
def test_ages_have_two_units(seconds: int, text: str) -> None:
    assert age(1_000_000_000, now=1 + seconds) == text


def test_a_time_that_has_not_come_is_a_dash() -> None:
    assert age(0) == "-"


def test_ids_and_enums_are_short() -> None:
    assert short("sha256:" + "ab" * 32) == "ab" * 6 + "a"
    assert enum_name(cri.ContainerState, cri.CONTAINER_RUNNING, "CONTAINER_") == "Running"
    assert enum_name(cri.ContainerState, 99, "CONTAINER_") == "99"


def test_messages_become_json_with_the_interfaces_own_names() -> None:
    shown = plain([cri.PodSandbox(id="x", created_at=5)])
    assert isinstance(shown, list)
    assert json.loads(json.dumps(shown))[0]["created_at"] == "5"
    assert shown[0]["runtime_handler"] == ""


def test_json_keeps_what_can_be_read_and_escapes_what_a_terminal_acts_upon(capsys: pytest.CaptureFixture[str]) -> None:
    value = ["\x1b[2J", "\x9b2J", "\x7f", "\u202egpj.exe", "\U000e0041", "\ud800", "é ü 漢"]
    print_json(value)
    shown = capsys.readouterr().out
    assert json.loads(shown) == value
    assert all(line.isprintable() for line in shown.splitlines()) and "é ü 漢" in shown
