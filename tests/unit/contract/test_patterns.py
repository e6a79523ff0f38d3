from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.contract.patterns import matches, subjects_meet


@pytest.mark.parametrize(
    ("glob", "text", "expected"),
    [
        ("docker.io/library/busybox", "docker.io/library/busybox", True),
        ("docker.io/library/busybox", "docker.io/library/busybox2", False),
        ("docker.io/library/*", "docker.io/library/busybox", True),
        ("docker.io/*", "docker.io/library/busybox", False),
        ("docker.io/**", "docker.io/library/busybox", True),
        ("docker.io/**", "docker.io.evil.com/library/busybox", False),
        ("**", "anything/at/all", True),
        ("*", "a/b", False),
        ("***", "a/b", True),
        ("**/web", "ghcr.io/acme/web", True),
        ("**/web", "web", False),
        ("gh*.io/a*e/*", "ghcr.io/acme/x", True),
        ("a.b", "axb", False),
        ("", "", True),
        ("*", "", True),
    ],
)
def test_globs(glob: str, text: str, expected: bool) -> None:
    assert matches(glob, text) is expected


def _as_regex(glob: str) -> str:
    parts = re.split(r"(\*+)", glob)
    return "".join(
        re.escape(part) if "*" not in part else "[^/]*" if len(part) == 1 else ".*" for part in parts if part
    )


@given(st.text("ab/*", max_size=8), st.text("ab/", max_size=10))
def test_globs_are_what_regular_expressions_say_they_are(glob: str, text: str) -> None:
    assert matches(glob, text) is bool(re.fullmatch(_as_regex(glob), text, re.DOTALL))


def test_no_glob_takes_long() -> None:
    started = time.monotonic()
    assert not matches("*a" * 127, "a" * 254 + "b")
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("shop.orders", "shop.orders", "shop.orders"),
        ("shop.orders", "shop.bills", None),
        ("shop.*", "shop.orders", "shop.orders"),
        ("shop.*", "shop.orders.new", None),
        ("shop.>", "shop.orders.*", "shop.orders.*"),
        ("shop.>", "shop", None),
        ("*.orders", "shop.*", "shop.orders"),
        (">", "a.b.c", "a.b.c"),
        ("a.*.c", "a.b.>", "a.b.c"),
        ("a.*.>", "a.>", "a.*.>"),
    ],
)
def test_subjects_that_two_patterns_match(one: str, other: str, both: str | None) -> None:
    assert subjects_meet(one, other) == both
