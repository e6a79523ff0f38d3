"""``forge node``: ForgeOne on a node of a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final

from forgeone_shim.cli import node_host
from forgeone_shim.errors import Unimplemented
from forgeone_shim.node.layout import Layout

_COMMANDS: Final[dict[str, Callable[[Layout, argparse.Namespace], int]]] = {"prepare": node_host.prepare}


def command(args: argparse.Namespace) -> int:
    """Run ``forge node ACTION``."""
    if args.action not in _COMMANDS:
        raise Unimplemented(f"forge node {args.action} is not part of this version")
    return _COMMANDS[args.action](Layout(Path(args.host_root)), args)
