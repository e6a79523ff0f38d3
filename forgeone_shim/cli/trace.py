"""``forge trace``: the calls of a WebAssembly guest to its host, as strace(1) shows system calls."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from typing import Any

from forgeone_shim.cli.client import Client, any_container
from forgeone_shim.cli.output import printable
from forgeone_shim.rpc import node_pb2

_WASI = ("wasi_snapshot_preview1", "wasi_unstable")


def command(client: Client, args: argparse.Namespace) -> int:
    """Print them, a line each."""
    request = node_pb2.TraceContainerRequest(container_id=any_container(client, args.container), follow=args.follow)
    shown = _json if args.output == "json" else _line
    with client.errors():
        for message in client.node.TraceContainer(request, timeout=None):
            if message.lost:
                sys.stderr.write(f"forge: {message.lost} calls were not kept\n")
            sys.stdout.write("".join(shown(call) for call in message.calls))
            sys.stdout.flush()
    return 0


def _line(call: Any) -> str:
    seconds, rest = divmod(call.at, 1_000_000_000)
    at = datetime.datetime.fromtimestamp(seconds).astimezone()
    interface = "" if call.interface in _WASI else f"{call.interface} "
    result = f" = {call.result}" if call.result else "" if call.returned else " = ?"
    took = f" <{call.duration / 1e9:.6f}>" if call.HasField("duration") else ""
    # In the guest's words, which are not to reach the terminal as they are.
    words = printable(f"{interface}{call.function}({', '.join(call.arguments)}){result}")
    return f"{at:%H:%M:%S}.{rest // 1000:06d} {words}{took}\n"


def _json(call: Any) -> str:
    shown = {
        "number": call.number,
        "at": call.at,
        "duration": call.duration if call.HasField("duration") else None,
        "interface": call.interface,
        "function": call.function,
        "arguments": list(call.arguments),
        "result": call.result if call.returned else None,
    }
    return json.dumps(shown) + "\n"
