"""Which mirror this host's apt takes Debian from: ``sources.list`` and ``sources.list.d`` (sources.list(5))."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_APT = Path("/etc/apt")


@dataclass(frozen=True, slots=True)
class Mirror:
    """A mirror of Debian, and the keyring its release is signed with (``""``: debootstrap's own)."""

    url: str
    keyring: str = ""


def mirror(suite: str, apt: Path = _APT) -> Mirror | None:
    """The first mirror that has ``suite`` with its ``main`` component; ``None`` when this host's apt names none."""
    files = [apt / "sources.list", *sorted(apt.glob("sources.list.d/*"))]
    for path in files:
        if not path.is_file():
            continue
        if path.suffix == ".list":
            found = _lines(path.read_text(), suite)
        elif path.suffix == ".sources":
            found = _stanzas(path.read_text(), suite)
        else:
            continue
        for one in found:
            return one
    return None


def _lines(text: str, suite: str) -> Iterator[Mirror]:
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words or words[0] != "deb":
            continue
        options: list[str] = []
        if len(words) > 1 and words[1].startswith("["):
            end = next((number for number, word in enumerate(words) if word.endswith("]")), len(words) - 1)
            options = " ".join(words[1 : end + 1]).strip("[] ").split()
            words = [words[0], *words[end + 1 :]]
        if len(words) > 3 and words[2] == suite and "main" in words[3:]:
            keys = (option.partition("=")[2] for option in options if option.startswith("signed-by="))
            yield Mirror(words[1], _keyring(next(keys, "")))


def _stanzas(text: str, suite: str) -> Iterator[Mirror]:
    for stanza in "\n".join(line for line in text.splitlines() if not line.startswith("#")).split("\n\n"):
        fields: dict[str, list[str]] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields.setdefault(name, []).extend(line.split())
                continue
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.split()
        kinds, suites, components = (fields.get(name, []) for name in ("types", "suites", "components"))
        if "deb" in kinds and suite in suites and "main" in components and fields.get("enabled") != ["no"]:
            for url in fields.get("uris", [])[:1]:
                yield Mirror(url, _keyring(next(iter(fields.get("signed-by", [])), "")))


def _keyring(value: str) -> str:
    """A key may stand there itself, or a fingerprint: only a file is of use to debootstrap."""
    return value if value.startswith("/") else ""
