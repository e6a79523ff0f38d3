"""Verbs that an engine brings (entry points ``forgeone.commands``): what they do is the engine's, how it looks is not.

Such a command takes the arguments and the configuration, and returns what is to be shown, by name.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from importlib.metadata import entry_points

from forgeone_shim.cli.output import print_json, printable
from forgeone_shim.config import loader
from forgeone_shim.errors import FailedPrecondition

GROUP = "forgeone.commands"


def command(args: argparse.Namespace) -> int:
    """Run the engine's command of this verb."""
    config = loader.load(["--config", args.config] if args.config else [], os.environ)
    for point in entry_points(group=GROUP, name=args.verb):
        report: dict[str, str] = point.load()(args, asdict(config))
        if args.output == "json":
            print_json(report)
        else:
            width = max(map(len, report))
            sys.stdout.write("".join(f"{name:{width}}  {printable(value)}\n" for name, value in report.items()))
        return 0
    raise FailedPrecondition(f"the {args.verb} engine is not part of this installation")
