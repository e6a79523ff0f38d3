"""What a node has of ForgeOne: read, and changed by nothing here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from forgeone_shim.errors import ForgeError
from forgeone_shim.node import files, kubelet, layout, units, versions
from forgeone_shim.node.journal import Record, Store
from forgeone_shim.node.layout import Layout
from forgeone_shim.node.tree import NodeTree

_ENGINE: Final = "engine "


class _Problem(msgspec.Struct, frozen=True):
    unusable: bool = False


class _Check(msgspec.Struct, frozen=True):
    name: str
    ok: bool
    problems: tuple[_Problem, ...] = ()


class _Findings(msgspec.Struct, frozen=True):
    """What ``forge doctor -o json`` says, as far as it matters here."""

    checks: tuple[_Check, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """``version`` is installed (empty: nothing), ``answers`` on the socket; ``unready`` says why that is not ready.

    ``drift``: what is not as the installer left it. ``unfinished``: the verb of a run that is under way, or was killed.
    """

    version: str
    mode: str
    upstream: str
    current: str
    versions: tuple[str, ...]
    answers: str
    unready: str
    kubelet: str
    engines: tuple[str, ...]
    drift: tuple[str, ...]
    unfinished: str
    last: str

    @property
    def ready(self) -> bool:
        """Whether pods of ForgeOne's can run here."""
        return bool(self.version) and self.answers == self.version and not (self.unready or self.drift)


def read(node: Layout, ask: Callable[[Path], tuple[str, str]]) -> State:
    """:param ask: a CRI socket's version, and why it is not ready; raises ForgeError where nobody answers.

    :raises InternalError: the installer's files cannot be read.
    """
    store = Store(node)
    record, journal, outcome = store.record(), store.journal(), store.outcome()
    try:
        answers, unready = ask(node.at(layout.SOCKET, follow=True))
    except ForgeError as error:
        answers, unready = "", str(error)
    endpoint, reason = _endpoint(node)
    return State(
        version=record.version if record else "",
        mode=record.mode if record else "",
        upstream=record.upstream if record else "",
        current=files.readlink(node.at(layout.CURRENT)) or "",
        versions=tuple(name for name in versions.present(node) if not name.startswith(".")),
        answers=answers,
        unready=unready,
        kubelet=endpoint or reason,
        engines=engines(node),
        drift=_drift(node, record, endpoint) if record else (),
        unfinished=journal.verb if journal else "",
        last=f"{outcome.verb} {outcome.result} {outcome.reason}".strip() if outcome else "",
    )


def engines(node: Layout) -> tuple[str, ...]:
    """The engines whose pods this host can run, by what ``forge node prepare`` has found; none before it has looked."""
    try:
        found = msgspec.json.decode(files.read(node.at(layout.FINDINGS)) or b"{}", type=_Findings)
    except msgspec.DecodeError:
        return ()
    able = (
        check.name for check in found.checks if check.ok and not any(problem.unusable for problem in check.problems)
    )
    return tuple(name.removeprefix(_ENGINE) for name in able if name.startswith(_ENGINE))


def _endpoint(node: Layout) -> tuple[str, str]:
    try:
        return kubelet.discover(NodeTree(node)).endpoint, ""
    except ForgeError as error:
        return "", str(error)


def _drift(node: Layout, record: Record, endpoint: str) -> tuple[str, ...]:
    """What another has changed since the installation; an upgrade of kubeadm's rewrites the kubelet's files."""
    found = []
    expected = layout.version_directory(record.version).removeprefix(f"{layout.PREFIX}/")
    if files.readlink(node.at(layout.CURRENT)) != expected:
        found.append(f"{layout.CURRENT} does not lead to {expected}")
    written = (units.PREPARE,) if record.version in versions.packaged(node) else (units.SERVICE, units.PREPARE)
    found += [f"{path} is gone" for path in written if files.read(node.at(path)) is None]
    if record.edits and endpoint and kubelet.socket_of(endpoint) != layout.SOCKET:
        found.append(f"the kubelet is to use {endpoint}")
    return tuple(found)
