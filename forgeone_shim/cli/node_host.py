"""``forge node prepare``, which mends what the host lacks and keeps what it finds; and what a node is wished to be."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from forgeone_shim.cli import doctor, host
from forgeone_shim.cli.node_runtimes import CriRuntimes
from forgeone_shim.config import loader
from forgeone_shim.errors import ForgeError, InvalidInput
from forgeone_shim.node import layout
from forgeone_shim.node.files import replace
from forgeone_shim.node.installer import Installer
from forgeone_shim.node.kubelet import Choice
from forgeone_shim.node.layout import Layout
from forgeone_shim.node.plan import Wish
from forgeone_shim.node.systemd import Systemd


def prepare(node: Layout, args: argparse.Namespace) -> int:
    """0 when pods can run on this host, 1 when not. An installation that was killed is undone before services start."""
    recover(node)
    config = loader.load(["--config", args.config] if args.config else [], os.environ)
    checks = host.look(config)
    if doctor.mend(checks):
        checks = host.look(config)
    report = doctor.report(checks)
    replace(node.at(layout.FINDINGS), json.dumps(report).encode(), mode=0o644)
    return int(not report["ok"])


def wish(args: argparse.Namespace) -> Wish:
    """What the command line asks of a node.

    :raises InvalidInput: the file of the configuration cannot be read.
    """
    try:
        config = Path(args.config).read_bytes() if args.config else None
    except OSError as error:
        raise InvalidInput("--config", f"{args.config}: {error.strerror}") from None
    return Wish(
        mode=args.mode,
        upstream=args.upstream,
        choice=Choice(args.kubelet),
        service=args.service == "systemd",
        config=config,
        drain=getattr(args, "drain", False),
    )


def recover(node: Layout) -> None:
    """What is under way now is left alone; what cannot be undone is told, and keeps the host from nothing else."""
    try:
        if Installer(node, Systemd(node), CriRuntimes()).recover():
            sys.stderr.write("forge: an installation that was cut off has been undone\n")
    except ForgeError as error:
        sys.stderr.write(f"forge: {error}\n")
