"""``forge node status``: what is installed on a node, and whether it is in use."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from forgeone_shim.cli.node_runtimes import condition
from forgeone_shim.cli.output import print_json, table
from forgeone_shim.deadline import Deadline
from forgeone_shim.node import state
from forgeone_shim.node.installer import opened
from forgeone_shim.node.layout import Layout
from forgeone_shim.node.state import State

_SECONDS = 10.0


def status(node: Layout, args: argparse.Namespace) -> int:
    """0 when pods of ForgeOne's can run on the node, 1 when not."""
    found = state.read(node, lambda socket: condition(socket, Deadline.after(_SECONDS)))
    expected = not args.bundle or opened(args.bundle).version == found.version
    if not args.quiet:
        if args.output == "json":
            print_json({**asdict(found), "ready": found.ready})
        else:
            sys.stdout.write(table(("WHAT", "STATE"), _rows(found)))
    return int(not (found.ready and expected))


def _rows(found: State) -> list[tuple[str, str]]:
    mode = f"{found.mode} {found.upstream}".strip()
    rows = [
        ("installed", f"{found.version} ({mode})" if found.version else "no"),
        ("current", found.current or "-"),
        ("versions", " ".join(found.versions) or "-"),
        ("forgeoned", f"{found.answers} {found.unready or 'ready'}".strip()),
        ("kubelet", found.kubelet or "-"),
        ("engines", " ".join(found.engines) or "-"),
    ]
    if found.unfinished:
        rows.append(("unfinished", f"{found.unfinished}: the next forge node finishes or undoes it"))
    rows += [("drift", line) for line in found.drift]
    if found.last:
        rows.append(("last", found.last))
    return rows
