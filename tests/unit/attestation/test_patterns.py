"""Patterns of policies, matched with names that strangers chose."""

from __future__ import annotations

import time

import pytest

from forgeone_shim.attestation.authorities import Identity
from forgeone_shim.attestation.certificates import Names
from forgeone_shim.attestation.patterns import Pattern


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("b", "abc", True),
        ("^b", "abc", False),
        ("", "", True),
        (r"^https://example\.com/.+$", "https://example.com/x", True),
        (r"^https://example\.com/.+$", "https://exampleXcom/x", False),
        # Not before a line's end, and no digit but ten.
        ("x$", "x\n", False),
        (r"^\d$", "\u0663", False),
        ("(?i)^ABC$", "abc", True),
        ("^\u00e9+$", "\u00e9\u00e9", True),
        ("^https://good$", "https://good\0.evil", False),
        ("x", "\0x", False),
        ("", "\ud800", False),
    ],
)
def test_they_mean_what_they_mean_to_policy_controller(pattern: str, text: str, fits: bool) -> None:
    assert Pattern(pattern).search(text) is fits


@pytest.mark.parametrize("pattern", ["(", "a\\", "(?=a)", r"(a)\1", "a{1001}", "a\0b", "\ud800"])
def test_what_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Pattern(pattern)


def test_no_name_keeps_one_busy() -> None:
    identity = Identity("https://idp", subject_pattern=Pattern(r"^.+@(.+\.)*example\.com$"))
    before = time.process_time()
    assert not identity.fits(Names(emails=(f"a@{'a.' * 2000}b",), issuer="https://idp"))
    assert time.process_time() - before < 1
    assert identity.fits(Names(emails=("a@b.c.example.com",), issuer="https://idp"))
