"""Where apt takes Debian from."""

from __future__ import annotations

from pathlib import Path

import pytest

from hack.guest.sources import Mirror, mirror

DEB822 = """\
# the security archive comes first
Types: deb
URIs: http://mirror.test/security
Suites: bookworm-security
Components: main

Types: deb-src deb
URIs: http://mirror.test/debian http://other.test/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian.gpg
"""


def apt(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return directory


def test_a_stanza_of_the_suite_is_found(tmp_path: Path) -> None:
    apt(tmp_path, "sources.list.d/debian.sources", DEB822)
    assert mirror("bookworm", tmp_path) == Mirror("http://mirror.test/debian", "/usr/share/keyrings/debian.gpg")


@pytest.mark.parametrize(
    ("line", "keyring"),
    [
        ("deb http://mirror.test/debian bookworm main", ""),
        ("deb [arch=amd64 signed-by=/k.gpg] http://mirror.test/debian bookworm contrib main # here", "/k.gpg"),
        ("deb [ trusted=yes ] http://mirror.test/debian bookworm main", ""),
    ],
)
def test_a_line_of_the_suite_is_found(tmp_path: Path, line: str, keyring: str) -> None:
    apt(tmp_path, "sources.list", f"deb-src http://no.test/debian bookworm main\n{line}\n")
    assert mirror("bookworm", tmp_path) == Mirror("http://mirror.test/debian", keyring)


def test_a_key_within_a_stanza_is_no_keyring(tmp_path: Path) -> None:
    text = DEB822.replace("/usr/share/keyrings/debian.gpg", "\n -----BEGIN PGP PUBLIC KEY BLOCK-----")
    found = mirror("bookworm", apt(tmp_path, "sources.list.d/debian.sources", text))
    assert found == Mirror("http://mirror.test/debian")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list", "deb http://mirror.test/ubuntu noble main\n"),
        ("sources.list", "# deb http://mirror.test/debian bookworm main\n"),
        ("sources.list", "deb http://mirror.test/debian bookworm contrib\ndeb http://mirror.test\n"),
        ("sources.list.d/debian.sources", DEB822.replace("Types: deb-src deb", "Types: deb-src")),
        ("sources.list.d/debian.sources", f"{DEB822}Enabled: no\n"),
        ("sources.list.d/debian.sources.off", DEB822),
    ],
)
def test_what_apt_does_not_take_is_not_taken(tmp_path: Path, name: str, text: str) -> None:
    assert mirror("bookworm", apt(tmp_path, name, text)) is None
