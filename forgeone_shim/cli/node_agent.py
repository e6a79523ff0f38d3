"""``forge node agent`` and ``forge node retire``: nodes of a cluster that are installed, and given back, in turn."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from forgeone_shim.cli.node_host import wish
from forgeone_shim.cli.node_runtimes import CriRuntimes, condition
from forgeone_shim.config.logging import setup
from forgeone_shim.config.model import LogConfig
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.node import bundle as bundles
from forgeone_shim.node import files, layout, state, versions
from forgeone_shim.node.agent import Agent, Condition, Habits
from forgeone_shim.node.cluster import Cluster
from forgeone_shim.node.installer import Installer, Removal, opened
from forgeone_shim.node.labels import How
from forgeone_shim.node.layout import Layout
from forgeone_shim.node.plan import REPLACE, Wish
from forgeone_shim.node.retirement import retire as retired
from forgeone_shim.node.rollout import Turns
from forgeone_shim.node.steps import said
from forgeone_shim.node.systemd import Systemd

_ASKED: Final = 10.0
_BEYOND: Final = 240.0
"""Seconds that an installation may take to be undone, after its own time."""

_WATCHED: Final = (
    "/etc/default",
    "/etc/forgeone",
    "/etc/sysconfig",
    layout.UNITS,
    "/var/lib/kubelet",
    layout.PREFIX,
    str(Path(layout.SOCKET).parent),
)


def agent(args: argparse.Namespace) -> int:
    """Stay on the node until SIGTERM."""
    for name in ("node", "namespace"):
        if not getattr(args, name):
            raise InvalidInput(f"--{name}", "is missing", fix="the downward API tells it")
    signal.signal(signal.SIGTERM, _ended)
    setup(LogConfig())
    cluster = Cluster(args.kubeconfig)
    turns = Turns(cluster, args.namespace, args.lease, args.max_unavailable, args.node)
    habits = Habits(
        pod=os.environ.get("POD_UID", ""), cordon=args.cordon, taint=args.taint, patient=args.cordoned == "wait"
    )
    Agent(cluster, turns, HostHands(Layout(Path(args.host_root)), args), args.node, habits).run()


def retire(args: argparse.Namespace) -> int:
    """0 when no node has a ForgeOne any more."""
    how = How.FORCE if args.force else How.DRAIN if args.drain else How.REFUSE
    left = retired(Cluster(args.kubeconfig), args.nodes, how, Deadline.after(args.timeout))
    for name, reason in left.items():
        sys.stderr.write(f"forge: {name}: {reason}\n")
    return int(bool(left))


class HostHands:
    """See :class:`forgeone_shim.node.agent.Hands`. The host's systemd does it, or this process (``--service none``)."""

    def __init__(self, node: Layout, args: argparse.Namespace) -> None:
        self._node, self._args = node, args
        self._systemd = Systemd(node)
        self._installer = Installer(node, self._systemd, CriRuntimes())

    def look(self) -> Condition:
        """As the protocol says."""
        args = self._args
        planned = self._installer.install(
            args.bundle, self._wish(), args.keep, Deadline.after(args.timeout), dry_run=True
        )
        found = state.read(self._node, lambda socket: condition(socket, Deadline.after(_ASKED)))
        pending = [said(step) for step in planned.steps]
        if found.unfinished:
            pending.append(f"{found.unfinished} that was cut off")
        if not pending:
            self._tidy()
        return Condition(
            version=found.version,
            ready=found.ready,
            reason=found.unready or "; ".join(found.drift),
            engines=found.engines,
            pending=tuple(pending),
        )

    def install(self) -> None:
        """As the protocol says."""
        args, deadline = self._args, Deadline.after(self._args.timeout)
        if args.service == "none":
            self._installer.install(args.bundle, self._wish(), args.keep, deadline)
            return
        if self._joined():
            # Of an agent before this one, and perhaps of another version: what is left to do is seen when it has ended.
            return
        bundle = opened(args.bundle)
        home = layout.version_directory(bundle.version)
        if bundles.stamp(self._node.at(home)) != bundle.digest:
            home = layout.STAGING
            versions.stage(self._node, bundle, home, deadline)
        self._execute([f"{home}/bin/forge", *self._words(home)])
        self._tidy()

    def uninstall(self, how: How) -> None:
        """As the protocol says."""
        if self._args.service != "none":
            self._joined()
        record = self._installer.store.record()
        if record is None:
            return
        force, drain = how is How.FORCE, how is How.DRAIN
        if self._args.service == "none":
            removal = Removal(service=False, drain=drain, force=force)
            self._installer.uninstall(removal, Deadline.after(self._args.timeout))
            return
        words = ["node", "uninstall", f"--timeout={self._args.timeout}", *([] if how is How.REFUSE else [f"--{how}"])]
        self._execute([f"{layout.version_directory(record.version)}/bin/forge", *words])
        if self._installer.store.record() is not None:
            raise FailedPrecondition("ForgeOne is installed still: another forge node was at work", fix="ask once more")

    def places(self) -> Sequence[Path]:
        """As the protocol says."""
        given = [Path(self._args.config).absolute().parent] if self._args.config else []
        return [*(self._node.at(path, follow=True) for path in _WATCHED), *given]

    def _wish(self) -> Wish:
        """In another runtime's place nothing may run twice, and the agent's own pod is one of those that do."""
        asked = wish(self._args)
        return Wish(
            mode=asked.mode,
            upstream=asked.upstream,
            choice=asked.choice,
            service=asked.service,
            config=asked.config,
            drain=asked.mode == REPLACE,
        )

    def _words(self, home: str) -> list[str]:
        args, asked = self._args, self._wish()
        words = ["node", "install", f"--bundle={home}", f"--kubelet={args.kubelet}", f"--keep={args.keep}"]
        words += [f"--timeout={args.timeout}", *([f"--{asked.mode}"] if asked.mode else [])]
        words += [f"--upstream={asked.upstream}"] if asked.upstream else []
        words += ["--drain"] if asked.drain else []
        if asked.config is not None:
            files.replace(self._node.at(layout.GIVEN), asked.config, mode=0o600)
            words.append(f"--config={layout.GIVEN}")
        return words

    def _tidy(self) -> None:
        """What was copied to the host to install from, unless that is still under way: its agent may have ended."""
        staging = self._node.at(layout.STAGING)
        if staging.exists() and not self._systemd.active(layout.INSTALLING_UNIT, Deadline.after(_ASKED)):
            versions.remove(staging)

    def _joined(self) -> bool:
        """Wait for what an agent before this one has begun; whether there was anything."""
        if not self._systemd.active(layout.INSTALLING_UNIT, Deadline.after(_ASKED)):
            return False
        self._systemd.join(layout.INSTALLING_UNIT, Deadline.after(self._args.timeout + _BEYOND))
        return True

    def _execute(self, argv: list[str]) -> None:
        result = self._systemd.execute(layout.INSTALLING_UNIT, argv, Deadline.after(self._args.timeout + _BEYOND))
        if result == "done":
            return
        outcome = self._installer.store.outcome()
        reason = outcome.reason if outcome is not None else ""
        raise FailedPrecondition(reason or result, fix=f"journalctl -u {layout.INSTALLING_UNIT} on the node")


def _ended(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)
