"""``forge reload``: forgeoned reads its configuration again."""

from __future__ import annotations

import argparse
import sys

from forgeone_shim.cli.client import Client
from forgeone_shim.cli.output import print_json
from forgeone_shim.rpc import node_pb2


def command(client: Client, args: argparse.Namespace) -> int:
    """What applies now, and what waits for a restart; a configuration that cannot be used is an error."""
    answer = client.call(client.node.Reload, node_pb2.ReloadRequest())
    if args.output == "json":
        print_json({"changed": list(answer.changed), "needsRestart": list(answer.needs_restart)})
        return 0
    lines = [f"{key}: changed" for key in answer.changed]
    lines += [f"{key}: needs a restart" for key in answer.needs_restart]
    sys.stdout.write("".join(f"{line}\n" for line in lines or ["nothing has changed"]))
    return 0
