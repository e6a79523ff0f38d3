"""iptables chains and rules as steps that may have been done already, and the script for those that have not. Pure.

Rules are written the way ``iptables-save`` prints them, word by word, so that they can be compared with what is there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

Rule = tuple[str, ...]
Known = Mapping[str, Sequence[Rule]]

_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:,=+@%!\[\]-]+")


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain that is to be there. A ``shared`` one belongs to many containers and stays."""

    name: str
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule that is to be in a chain once: at its end, or ``first``. A ``shared`` one stays, too."""

    chain: str
    rule: Rule
    first: bool = False
    shared: bool = False


Step = Chain | Entry


def parse_save(text: str, wanted: Collection[str]) -> dict[str, list[Rule]]:
    """From the output of ``iptables-save -t TABLE`` the chains there are, and the rules of those that are wanted."""
    chains: dict[str, list[Rule]] = {}
    for line in text.splitlines():
        if line.startswith(":"):
            chains[line[1:].partition(" ")[0]] = []
        elif line.startswith("-A "):
            _, chain, rest = line.split(" ", 2)
            if chain in wanted:
                chains.setdefault(chain, []).append(tuple(shlex.split(rest)))
    return chains


def ensure(table: str, steps: Iterable[Step], known: Known) -> str:
    """The script that does what is missing of the steps; empty when nothing is."""
    have = {name: list(rules) for name, rules in known.items()}
    lines: list[str] = []
    for step in steps:
        if isinstance(step, Chain):
            if step.name not in have:
                have[step.name] = []
                lines.append(f"-N {step.name}")
        elif step.rule not in have.setdefault(step.chain, []):
            have[step.chain].append(step.rule)
            lines.append(_line("-I" if step.first else "-A", step.chain, step.rule))
    return _script(table, lines)


def ensure_if_shared(table: str, steps: Iterable[Step]) -> str:
    """The script that takes all shared steps for done, and none of the others; it fails whole where that is not so."""
    checks: list[str] = []
    lines: list[str] = []
    done: set[Step] = set()
    for step in steps:
        if step in done:
            continue
        done.add(step)
        if isinstance(step, Chain):
            lines += [] if step.shared else [f"-N {step.name}"]
        elif step.shared:
            checks.append(_line("-C", step.chain, step.rule))
        else:
            lines.append(_line("-I" if step.first else "-A", step.chain, step.rule))
    return _script(table, checks + lines)


def drop(table: str, chain: str, callers: Iterable[str], known: Known) -> str:
    """The script that removes a chain and every rule of ``callers`` that jumps to it; empty when it is not there."""
    if chain not in known:
        return ""
    calls = [(name, rule) for name in callers for rule in known.get(name, ()) if rule[-2:] == ("-j", chain)]
    return drop_exact(table, chain, calls)


def drop_exact(table: str, chain: str, calls: Iterable[tuple[str, Rule]]) -> str:
    """The script that removes a chain and just these rules that jump to it; it fails whole unless they are all."""
    lines = [_line("-D", name, rule) for name, rule in calls]
    return _script(table, [*lines, f"-F {chain}", f"-X {chain}"])


def remove(table: str, entries: Iterable[Entry], known: Known) -> str:
    """The script that removes those of the rules that are there; empty when none is."""
    lines = [_line("-D", entry.chain, entry.rule) for entry in entries if entry.rule in known.get(entry.chain, ())]
    return _script(table, lines)


def missing(steps: Iterable[Step], known: Known) -> Step | None:
    """The first step that is not done."""
    for step in steps:
        there = step.name in known if isinstance(step, Chain) else step.rule in known.get(step.chain, ())
        if not there:
            return step
    return None


def chains_of(steps: Iterable[Step]) -> set[str]:
    """The chains that steps are about."""
    return {step.name if isinstance(step, Chain) else step.chain for step in steps}


def _script(table: str, lines: Sequence[str]) -> str:
    return "\n".join([f"*{table}", *lines, "COMMIT", ""]) if lines else ""


def _line(verb: str, chain: str, rule: Rule) -> str:
    return " ".join([verb, chain, *map(_quote, rule)])


def _quote(word: str) -> str:
    if _PLAIN.fullmatch(word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
