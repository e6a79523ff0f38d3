"""From what a node is and what it shall be to steps: pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from forgeone_shim.errors import FailedPrecondition, ForgeError, InvalidInput
from forgeone_shim.node import configuration, kubelet, layout, units
from forgeone_shim.node.bundle import Bundle
from forgeone_shim.node.journal import Edit, Journal, Record
from forgeone_shim.node.kubelet import Choice, Kubelet
from forgeone_shim.node.service import DIRECTORIES
from forgeone_shim.node.steps import Do, File, Healthy, Link, Ready, Settle, Step, Sweep, Tree, Unit, Vacate
from forgeone_shim.node.tree import Changed
from forgeone_shim.node.tree import Tree as Files

BESIDE: Final = "beside"
REPLACE: Final = "replace"
INSTALL: Final = "install"
UNINSTALL: Final = "uninstall"
_MODE: Final = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a node is. ``laid``: the bundle's version is there, as it should be (``same``), or otherwise (``other``).

    ``links`` are where those of :data:`forgeone_shim.node.units.LINKS` lead, ``active`` are services that run, and
    ``running`` are the names of pods in the way. ``packaged``: the version is a package manager's, and so are
    its unit and ``current``. ``other``: the runtime in whose place ForgeOne comes has a socket.
    """

    files: Files
    record: Record | None
    current: str | None
    links: Mapping[str, str | None]
    laid: str = ""
    superfluous: tuple[str, ...] = ()
    active: frozenset[str] = frozenset()
    running: tuple[str, ...] = ()
    packaged: bool = False
    other: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a node shall be; ``config`` is what config.toml is to hold, ``None``: what it was told before."""

    mode: str = ""
    upstream: str = ""
    choice: Choice = Choice.AUTO
    service: bool = True
    config: bytes | None = None
    drain: bool = False


@dataclass(frozen=True, slots=True)
class Way:
    """How a node is to run ForgeOne: ``beside`` the runtime at ``upstream``, or in its place."""

    mode: str
    upstream: str
    kubelet: Kubelet | None


def way(files: Files, record: Record | None, wish: Wish) -> Way:
    """Which runtime is beside or replaced.

    :raises InvalidInput: that is not known. FailedPrecondition: the kubelet cannot be pointed elsewhere.
    """
    found = None if wish.choice is Choice.NONE else kubelet.discover(files)
    before = record.upstream if record is not None else configuration.upstream(files.read(layout.CONFIG))
    if found is not None and found.socket != layout.SOCKET:
        before = found.socket
    upstream = kubelet.socket_of(wish.upstream) if wish.upstream else before
    mode = wish.mode or (record.mode if record is not None else BESIDE if upstream else REPLACE)
    if mode == BESIDE and not upstream:
        raise InvalidInput("--upstream", "is needed: nothing tells which runtime this node has")
    if upstream == layout.SOCKET:
        raise InvalidInput("--upstream", f"{upstream} is ForgeOne's own socket")
    return Way(mode, upstream, found)


def install(seen: Seen, wish: Wish, bundle: Bundle, chosen: Way) -> Journal:
    """What puts a bundle on a node; no steps when all is as it shall be.

    :raises ForgeError: it cannot be done, and why; nothing has been.
    """
    record = seen.record
    beside = chosen.upstream if chosen.mode == BESIDE else ""
    config = configuration.wanted(
        seen.files.read(layout.CONFIG),
        record.config if record else None,
        wish.config,
        record.given if record else b"",
        beside,
    )
    own: list[Step] = list(_own_files(seen, bundle))
    own += _file(seen.files, layout.CONFIG, config.content, _MODE)
    own += _link(
        layout.CURRENT, layout.version_directory(bundle.version).removeprefix(f"{layout.PREFIX}/"), seen.current
    )
    steps: list[Step] = []
    if seen.laid != "same":
        steps.append(Tree(str(bundle.directory), bundle.version, bundle.digest, seen.laid == "other"))
    if wish.service and (steps or own or layout.UNIT not in seen.active):
        steps.append(Settle(layout.UNIT, layout.UNIT in seen.active))
        own += [Unit(Do.RELOAD), Unit(Do.RESTART, layout.PREPARE_UNIT), Unit(Do.RESTART, layout.UNIT)]
        own.append(Ready(bundle.version))
    steps += own
    changes = _kubelet_changes(seen, wish, chosen)
    steps += _pointed(seen, wish, chosen, changes)
    edits = {edit.path: edit for edit in record.edits} if record else {}
    for path, new in changes.items():
        edits[path] = Edit(path, seen.files.read(path) or b"", new)
    made = Record(
        version=bundle.version,
        mode=chosen.mode,
        service="systemd" if wish.service else "none",
        upstream=chosen.upstream,
        config=config.content if config.ours else None,
        given=config.given,
        endpoint=chosen.kubelet.endpoint if chosen.kubelet and changes else record.endpoint if record else "",
        edits=tuple(edits.values()),
    )
    return Journal(verb=INSTALL, steps=tuple(steps), record=made, after=seen.superfluous)


def uninstall(seen: Seen, trees: Iterable[str], *, service: bool, drain: bool, force: bool, purge: bool) -> Journal:
    """What gives a node back; ``trees`` are removed at the end. No steps when nothing is installed.

    :raises FailedPrecondition: pods of ForgeOne's run, or the kubelet would have no runtime.
    """
    record = seen.record
    if record is None:
        return Journal(verb=UNINSTALL, steps=(), record=None)
    if seen.running and not (drain or force):
        raise FailedPrecondition(
            f"ForgeOne runs {len(seen.running)} pods here: {', '.join(seen.running[:5])}",
            fix="move them (kubectl drain), or stop them by --drain or --force",
        )
    steps: list[Step] = []
    back, found = _back(seen.files, record)
    swept: list[Step] = []
    if service and layout.UNIT in seen.active:
        beside = record.upstream if record.mode == BESIDE else ""
        swept.append(Sweep(layout.SOCKET, beside, 0 if force else 30, strict=not force, refuse=not (drain or force)))
    steps += _given_back(back, found, seen, swept, record.upstream if record.mode == REPLACE else "")
    if service:
        steps += [Settle(layout.UNIT, layout.UNIT in seen.active), Unit(Do.STOP, layout.UNIT)]
        steps.append(Unit(Do.STOP, layout.PREPARE_UNIT))
    for path, target in seen.links.items():
        steps += _link(path, None, target) if target == units.LINKS[path] else []
    for path in (units.SERVICE, units.PREPARE):
        steps += _file(seen.files, path, None, _MODE)
    config = seen.files.read(layout.CONFIG)
    if config is not None and (purge or config == record.config):
        steps += _file(seen.files, layout.CONFIG, None, _MODE)
    steps += [] if seen.packaged else _link(layout.CURRENT, None, seen.current)
    if service:
        steps.append(Unit(Do.RELOAD))
    return Journal(verb=UNINSTALL, steps=tuple(steps), record=None, after=tuple(trees))


def _own_files(seen: Seen, bundle: Bundle) -> Iterable[Step]:
    prefix = layout.CURRENT if seen.packaged else layout.version_directory(bundle.version)
    wanted = units.units(prefix, None if seen.packaged else bundle.service)
    for path, content in wanted.items():
        old = seen.files.read(path)
        if old is not None and not old.startswith(units.HEAD.encode()):
            raise FailedPrecondition(f"{path} was not written by forge node", fix="remove it, pods go on without it")
        yield from _file(seen.files, path, content, _MODE)
    for path, target in units.LINKS.items():
        if target in wanted:
            yield from _link(path, target, seen.links[path])


def _file(files: Files, path: str, content: bytes | None, mode: int) -> list[Step]:
    old = files.read(path)
    return [] if old == content else [File(path, content, old, mode)]


def _link(path: str, new: str | None, old: str | None) -> list[Step]:
    return [] if new == old else [Link(path, new, old)]


def _kubelet_changes(seen: Seen, wish: Wish, chosen: Way) -> Mapping[str, bytes]:
    if chosen.kubelet is None:
        return {}
    return kubelet.pointed(seen.files, wish.choice, layout.ENDPOINT)


def _pointed(seen: Seen, wish: Wish, chosen: Way, changes: Mapping[str, bytes]) -> list[Step]:
    """The kubelet is told where ForgeOne is; where that is in another runtime's place, nothing runs twice."""
    replaced = chosen.mode == REPLACE and bool(chosen.upstream)
    if replaced and seen.running and not wish.drain:
        raise FailedPrecondition(
            f"the runtime at {chosen.upstream} runs {len(seen.running)} pods: {', '.join(seen.running[:5])}",
            fix="move them (kubectl drain), stop them by --drain, or leave them there: --beside",
        )
    if chosen.kubelet is None or not (changes or (replaced and seen.running)):
        return []
    written = _written(changes, seen)
    swept: list[Step] = []
    if replaced and wish.service and seen.other:
        swept.append(Sweep(chosen.upstream, refuse=not wish.drain))
    if kubelet.UNIT not in seen.active:
        # One that does not run yet, as before a node joins, is not this installation's to start.
        return [*swept, *written]
    stopped: list[Step] = [Unit(Do.STOP, kubelet.UNIT)] if replaced else []
    if changes and wish.service and (replaced or layout.UNIT not in seen.active):
        # Beside another runtime, those that ForgeOne had before are its own, whatever becomes of this.
        written = [Vacate(layout.SOCKET, "" if replaced else chosen.upstream), *written]
    return [Settle(kubelet.UNIT, active=True), *stopped, *swept, *written, *_restarted(changes, chosen.kubelet)]


def _back(files: Files, record: Record) -> tuple[Mapping[str, bytes], Kubelet | None]:
    """The kubelet's files as they were, where they are still as they were written; else the one value in them."""
    back = {edit.path: edit.old for edit in record.edits if files.read(edit.path) == edit.new}
    try:
        found = kubelet.discover(Changed(files, back))
    except ForgeError:
        # No kubelet, or one that cannot be understood any more, is not kept from having its files back.
        return back, None
    if found.socket == layout.SOCKET:
        if not record.endpoint:
            raise FailedPrecondition(
                f"the kubelet uses {layout.SOCKET}, and it was not forge node that told it to",
                fix="point it to another runtime first",
            )
        back |= kubelet.pointed(Changed(files, back), Choice.AUTO, record.endpoint)
    return back, found


def _given_back(
    back: Mapping[str, bytes], found: Kubelet | None, seen: Seen, swept: list[Step], replaced: str
) -> list[Step]:
    """The kubelet is told where its runtime was; ``replaced``, which is to run the pods that ForgeOne runs now."""
    written = _written(back, seen)
    if not written or kubelet.UNIT not in seen.active:
        return [*written, *swept]
    settled, restarted = Settle(kubelet.UNIT, active=True), _restarted(back, found)
    if replaced:
        return [settled, Unit(Do.STOP, kubelet.UNIT), *swept, Vacate(replaced), *written, *restarted]
    # ForgeOne's pods cannot run there; the others are not to be without a kubelet while these are stopped.
    return [settled, *written, *restarted, *swept]


def _written(changes: Mapping[str, bytes], seen: Seen) -> list[Step]:
    return [File(path, new, seen.files.read(path), _MODE) for path, new in changes.items()]


def _restarted(changes: Mapping[str, bytes], found: Kubelet | None) -> list[Step]:
    units_changed = any(path.startswith(DIRECTORIES) for path in changes)
    reloaded: list[Step] = [Unit(Do.RELOAD)] if units_changed else []
    return [*reloaded, Unit(Do.RESTART, kubelet.UNIT), _healthy(found)]


def _healthy(found: Kubelet | None) -> Healthy:
    address, port = (found.healthz if found is not None else None) or ("", 0)
    return Healthy(address, port)


def shown(journal: Journal) -> object:
    """A plan as plain data, without what is in files."""
    return [_plain(step) for step in journal.steps]


def _plain(step: Step) -> dict[str, object]:
    found: dict[str, object] = json.loads(msgspec.json.encode(step))
    return {key: value for key, value in found.items() if key not in {"new", "old"} or not isinstance(step, File)}
