"""``forge node prepare``: what the host lacks, mended where it can be, and kept for whoever labels the node."""

from __future__ import annotations

import argparse
import json
import os

from forgeone_shim.cli import doctor, host
from forgeone_shim.config import loader
from forgeone_shim.node import layout
from forgeone_shim.node.files import replace
from forgeone_shim.node.layout import Layout


def prepare(node: Layout, args: argparse.Namespace) -> int:
    """0 when pods can run on this host, 1 when not."""
    config = loader.load(["--config", args.config] if args.config else [], os.environ)
    checks = host.look(config)
    if doctor.mend(checks):
        checks = host.look(config)
    report = doctor.report(checks)
    replace(node.at(layout.FINDINGS), json.dumps(report).encode(), mode=0o644)
    return int(not report["ok"])
