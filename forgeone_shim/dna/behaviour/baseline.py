"""What is usual for an image: learned from containers that did what they should, then pinned. Pure.

A *draft* may be learned from any number of containers. Pinned, a baseline changes no more, and its digest names it:
SHA-256 over the canonical JSON (RFC 8785) of all that it says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgspec

from forgeone_shim.dna.behaviour.profile import Profile, Seen
from forgeone_shim.errors import FailedPrecondition, InvalidInput

FORMAT: Final = 1
#: A baseline's document is no larger, in bytes.
SIZE_MAX: Final = 256 * 1024
_NAME_MAX: Final = 256
_CALLS_MAX: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Calls in the order in which the first of the containers made each first; counts of all of them together.

    ``image`` is the digest of the image's config. ``containers`` is how many it was learned from.
    """

    format: int = FORMAT
    image: str
    engine: str
    machine: str
    containers: int
    system: tuple[Seen, ...]
    host: tuple[Seen, ...] = ()

    @property
    def digest(self) -> str:
        """``sha256:`` and 64 digits."""
        return f"sha256:{hashlib.sha256(self.canonical()).hexdigest()}"

    def canonical(self) -> bytes:
        """Its document."""
        # Not above: a node where nobody is watched never asks for it.
        import rfc8785

        return rfc8785.dumps(_plain(asdict(self)))


def learn(before: Baseline | None, image: str, engine: str, seen: Profile) -> Baseline:
    """A baseline with what a container did, besides what was learned ``before``.

    :raises FailedPrecondition: nothing was seen, not all was seen and there is nothing to add to, or what was learned
        before is another machine's or engine's.
    """
    if not seen.system and not seen.host:
        raise FailedPrecondition("the container has done nothing yet that could be learned")
    if before is None:
        if not seen.whole:
            raise FailedPrecondition(
                "the container was not watched from its beginning on", fix="learn from one that was, then add this one"
            )
        return Baseline(
            image=image, engine=engine, machine=seen.machine, containers=1, system=seen.system, host=seen.host
        )
    if (before.engine, before.machine) != (engine, seen.machine):
        raise FailedPrecondition(
            f"what is known of the image was learned from {before.engine} on {before.machine}, this container is of "
            f"{engine} on {seen.machine}",
            fix="forge dna learn --anew",
        )
    return Baseline(
        image=image,
        engine=engine,
        machine=seen.machine,
        containers=before.containers + 1,
        system=_added(before.system, seen.system),
        host=_added(before.host, seen.host),
    )


def _added(before: Iterable[Seen], more: Iterable[Seen]) -> tuple[Seen, ...]:
    counts = {one.name: one.count for one in before}
    for one in more:
        counts[one.name] = counts.get(one.name, 0) + one.count
    return tuple(Seen(name, count) for name, count in counts.items())


class _Call(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    count: int | str


class _Document(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: int
    image: str
    engine: str
    machine: str
    containers: int
    system: tuple[_Call, ...]
    host: tuple[_Call, ...]


def parse(document: bytes) -> Baseline:
    """A baseline from another node, strictly: only what :meth:`Baseline.canonical` writes is one.

    :raises InvalidInput: names the field and what is wrong with it.
    """
    if len(document) > SIZE_MAX:
        raise InvalidInput("baseline", f"has {len(document)} bytes, more than {SIZE_MAX}")
    try:
        read = msgspec.json.decode(document, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput("baseline", str(error)) from error
    if read.format != FORMAT:
        raise InvalidInput("baseline.format", f"is {read.format}, not {FORMAT}")
    if read.containers < 1:
        raise InvalidInput("baseline.containers", "is less than 1")
    found = Baseline(
        image=_text("image", read.image),
        engine=_text("engine", read.engine),
        machine=_text("machine", read.machine),
        containers=read.containers,
        system=_calls("system", read.system),
        host=_calls("host", read.host),
    )
    try:
        same = found.canonical() == document.strip()
    except ValueError as error:
        raise InvalidInput("baseline", str(error)) from error
    if not same:
        # Of two spellings the digest could only be one's: what is pinned must be what was read.
        raise InvalidInput("baseline", "is not in its canonical form (RFC 8785), as forge dna learn writes it")
    return found


def _text(field: str, value: str) -> str:
    if not value or len(value) > _NAME_MAX or not value.isprintable():
        raise InvalidInput(f"baseline.{field}", f"{value[:_NAME_MAX]!r} is none")
    return value


def _calls(field: str, given: tuple[_Call, ...]) -> tuple[Seen, ...]:
    if len(given) > _CALLS_MAX:
        raise InvalidInput(f"baseline.{field}", f"has {len(given)} calls, more than {_CALLS_MAX}")
    found: dict[str, Seen] = {}
    for one in given:
        name = _text(f"{field}.name", one.name)
        if name in found:
            raise InvalidInput(f"baseline.{field}", f"has {name!r} twice")
        found[name] = Seen(name, _count(f"baseline.{field}[{name}]", one.count))
    return tuple(found.values())


def _count(field: str, value: int | str) -> int:
    if isinstance(value, str):
        if not (value.isascii() and value.isdecimal() and len(value) <= 20):
            raise InvalidInput(field, f"{value[:20]!r} is no count")
        value = int(value)
    if value < 1:
        raise InvalidInput(field, f"{value} is no count")
    return value


_SAFE: Final = 2**53 - 1


def _plain(value: Any) -> Any:
    """Numbers that JSON's readers may round are written as text (RFC 8785, appendix D)."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, int) and value > _SAFE else value
