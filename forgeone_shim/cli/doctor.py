"""``forge doctor``: what this host lacks, why it matters, and the command that mends it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from forgeone_shim.cli import host
from forgeone_shim.cli.host import Check, Finding
from forgeone_shim.cli.output import print_json
from forgeone_shim.config import loader

_APT = "apt-get install -y "


def command(args: argparse.Namespace) -> int:
    """0 when pods can run on this host, 1 when not. ``--fix`` does what can be done without installing anything."""
    config = loader.load(["--config", args.config] if args.config else [], os.environ)
    checks = host.look(config)
    if args.fix and mend(checks):
        checks = host.look(config)
    fatal = any(check.fatal for check in checks)
    if args.quiet and not fatal:
        return 0
    if args.output == "json":
        print_json(report(checks))
    else:
        sys.stdout.write(render(checks, colour=sys.stdout.isatty()))
    return int(fatal)


def report(checks: Sequence[Check]) -> dict[str, object]:
    """The checks as plain data."""
    return {
        "ok": not any(check.fatal for check in checks),
        "checks": [
            {
                "name": check.name,
                "ok": not check.fatal and not check.absent,
                "problems": [asdict(finding.problem) for finding in check.findings],
            }
            for check in checks
        ],
    }


def render(checks: Sequence[Check], *, colour: bool) -> str:
    """The checks for people, and at the end the commands to copy."""
    lines = []
    for check in checks:
        mark, code = ("FAIL", 31) if check.fatal else ("note", 33) if check.findings else ("ok", 32)
        lines.append(f"{_painted(f'{mark:4}', code, colour=colour)}  {check.name}")
        lines += [f"      {finding.problem.what}: {finding.problem.why}" for finding in check.findings]
    findings = [finding for check in checks for finding in check.findings]
    needed = fixes([finding for finding in findings if finding.problem.fatal])
    wished = [fix for fix in fixes([finding for finding in findings if not finding.problem.fatal]) if fix not in needed]
    for title, commands in (("to mend it, as root:", needed), ("not needed, yet better, as root:", wished)):
        if commands:
            lines += ["", title, *(f"  {line}" for line in commands)]
    return "\n".join(lines) + "\n"


def fixes(findings: Sequence[Finding]) -> list[str]:
    """Every fix once; all packages in one apt-get."""
    given = list(dict.fromkeys(finding.problem.fix for finding in findings if finding.problem.fix))
    packages = sorted({name for fix in given if fix.startswith(_APT) for name in fix.removeprefix(_APT).split()})
    others = [fix for fix in given if not fix.startswith(_APT)]
    return ([_APT + " ".join(packages)] if packages else []) + others


def mend(checks: Sequence[Check]) -> bool:
    """Do what needs no package to be installed; whether anything was done."""
    done = False
    for finding in (finding for check in checks for finding in check.findings):
        if finding.mend is None:
            continue
        try:
            finding.mend()
            sys.stderr.write(f"done: {finding.problem.fix}\n")
            done = True
        except OSError as error:
            sys.stderr.write(f"failed: {finding.problem.fix}: {error.strerror or error}\n")
    return done


def _painted(text: str, code: int, *, colour: bool) -> str:
    return f"\033[{code}m{text}\033[0m" if colour else text
