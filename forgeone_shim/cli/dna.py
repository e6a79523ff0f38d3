"""``forge dna``."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from forgeone_shim.cli import behaviour, inspect
from forgeone_shim.cli.client import Client


def command(client: Client, args: argparse.Namespace) -> int:
    """Do what the command line asks for."""
    commands: dict[str, Callable[[Client, argparse.Namespace], int]] = {
        "show": inspect.show,
        "diff": inspect.diff,
        "learn": behaviour.learn,
        "pin": behaviour.pin,
        "drift": behaviour.drift,
        "seccomp": behaviour.seccomp,
    }
    return commands[args.action](client, args)
