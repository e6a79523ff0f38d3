"""``forge node``: ForgeOne on a node of a cluster."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from forgeone_shim.cli import node_host, node_status
from forgeone_shim.cli.node_runtimes import CriRuntimes
from forgeone_shim.cli.output import print_json, printable
from forgeone_shim.deadline import Deadline
from forgeone_shim.node import plan
from forgeone_shim.node.installer import Installer, Removal
from forgeone_shim.node.journal import Journal
from forgeone_shim.node.layout import Layout
from forgeone_shim.node.steps import said
from forgeone_shim.node.systemd import Systemd

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def command(args: argparse.Namespace) -> int:
    """Run ``forge node ACTION``."""
    if args.action in {"agent", "retire"}:
        from forgeone_shim.cli import node_agent

        return node_agent.agent(args) if args.action == "agent" else node_agent.retire(args)
    return _COMMANDS[args.action](Layout(Path(args.host_root)), args)


def installer(node: Layout, *, quiet: bool = False) -> Installer:
    """What works on this node; told on standard error, step by step."""
    return Installer(node, Systemd(node), CriRuntimes(), (lambda _: None) if quiet else _tell)


def _install(node: Layout, args: argparse.Namespace) -> int:
    wished = node_host.wish(args)
    with _undone_by_signals():
        journal = installer(node, quiet=args.dry_run).install(
            args.bundle, wished, args.keep, Deadline.after(args.timeout), dry_run=args.dry_run
        )
    version = journal.record.version if journal.record is not None else ""
    _show(args, journal, f"ForgeOne {version} is installed" if journal.steps else f"ForgeOne {version} was installed")
    return 0


def _uninstall(node: Layout, args: argparse.Namespace) -> int:
    removal = Removal(service=args.service == "systemd", drain=args.drain, force=args.force, purge=args.purge)
    with _undone_by_signals():
        journal = installer(node, quiet=args.dry_run).uninstall(
            removal, Deadline.after(args.timeout), dry_run=args.dry_run
        )
    _show(args, journal, "ForgeOne is uninstalled" if journal.steps else "forge node has installed nothing here")
    return 0


def _show(args: argparse.Namespace, journal: Journal, result: str) -> None:
    if args.output == "json":
        print_json({"dry_run": args.dry_run, "verb": journal.verb, "steps": plan.shown(journal)})
    elif args.dry_run:
        lines = [said(step) for step in journal.steps] or ["nothing is to be done"]
        lines += [f"remove {path}" for path in journal.after if journal.steps]
        sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
    else:
        sys.stdout.write(f"{result}\n")


def _tell(line: str) -> None:
    sys.stderr.write(f"{printable(line)}\n")


@contextmanager
def _undone_by_signals() -> Iterator[None]:
    """A signal undoes what has been begun; a second one does not interrupt that."""

    def ended(number: int, _: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {each: signal.signal(each, ended) for each in _SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


_COMMANDS: Final[dict[str, Callable[[Layout, argparse.Namespace], int]]] = {
    "install": _install,
    "uninstall": _uninstall,
    "status": node_status.status,
    "prepare": node_host.prepare,
}
