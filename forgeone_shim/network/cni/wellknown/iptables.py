"""Running iptables as rarely as can be: one ``iptables-restore`` where a plugin's program runs ``iptables`` 30 times.

The variant (nf_tables or legacy) is the one that ``iptables`` on the search path is, so that plugins' programs and this
find each other's rules. A script takes effect whole or not at all.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forgeone_shim.deadline import Deadline
from forgeone_shim.kernel.netlink import NETLINK_NETFILTER, Netlink, NetlinkError, Request, text
from forgeone_shim.network.cni.plugin import CniError
from forgeone_shim.network.cni.wellknown import flock, rules
from forgeone_shim.network.cni.wellknown.result import INTERNAL
from forgeone_shim.network.cni.wellknown.rules import Entry, Known, Rule, Step

_NFT, _LEGACY = "xtables-nft-multi", "xtables-legacy-multi"
_COMMANDS: Final = {4: "iptables", 6: "ip6tables"}
_TABLE_NAMES: Final = {4: "/proc/thread-self/net/ip_tables_names", 6: "/proc/thread-self/net/ip6_tables_names"}
# Rules are a network namespace's own, and so is the lock of this file.
_NETNS: Final = "/proc/thread-self/ns/net"
_SECONDS: Final = 60.0
# Someone else changed the rules between a look and a change that often: then it is an error.
_TRIES: Final = 5
_FAMILY: Final = {4: 2, 6: 10}
_GETCHAIN, _CHAIN_TABLE, _CHAIN_NAME = 10 << 8 | 4, 1, 3


@dataclass(frozen=True, slots=True)
class Iptables:
    """The iptables of one IP version; ``program`` is the one file that is all its commands. Thread-safe."""

    program: str
    version: int

    @property
    def is_nft(self) -> bool:
        """Whether the rules are nftables' in the kernel."""
        return Path(self.program).name == _NFT

    def ensure(self, table: str, steps: Sequence[Step], deadline: Deadline, *, look_first: bool = False) -> None:
        """Do what is missing of the steps. Without ``look_first`` shared steps are expected to be done.

        :raises CniError: iptables refused.
        """
        if not look_first and self._restore(rules.ensure_if_shared(table, steps), deadline) is None:
            return
        wanted = rules.chains_of(steps)
        with self._alone(deadline):
            self._until_done(lambda: rules.ensure(table, steps, self.look(table, wanted, deadline)), deadline)

    def drop(
        self, table: str, chain: str, callers: Sequence[str], deadline: Deadline, calls: Iterable[tuple[str, Rule]] = ()
    ) -> None:
        """Remove a chain and all rules of ``callers`` that jump to it; ``calls`` are those expected. May be gone.

        :raises CniError: iptables refused.
        """
        if not self._may_have(table, chain):
            return
        expected = list(calls)
        if expected and self._restore(rules.drop_exact(table, chain, expected), deadline) is None:
            return
        self._until_done(lambda: rules.drop(table, chain, callers, self.look(table, callers, deadline)), deadline)

    def remove(self, table: str, entries: Sequence[Entry], deadline: Deadline) -> None:
        """Remove rules; missing ones are no error.

        :raises CniError: iptables refused.
        """
        wanted = rules.chains_of(entries)
        self._until_done(lambda: rules.remove(table, entries, self.look(table, wanted, deadline)), deadline)

    def look(self, table: str, chains: Iterable[str], deadline: Deadline) -> Known:
        """The chains of a table, with the rules of those that are named.

        :raises CniError: iptables failed.
        """
        done = self._run("save", ["-t", table], "", deadline)
        if done.returncode:
            raise CniError(INTERNAL, f"{_COMMANDS[self.version]}-save: {done.stderr.strip()}")
        return rules.parse_save(done.stdout, set(chains))

    @contextmanager
    def _alone(self, deadline: Deadline) -> Iterator[None]:
        """Between a look and a change no other thread or process of this kind makes what is shared a second time."""
        with flock.locked(_NETNS, os.O_RDONLY, 0, deadline):
            yield

    def _until_done(self, script: Callable[[], str], deadline: Deadline) -> None:
        why: str | None = None
        for _ in range(_TRIES):
            why = self._restore(script(), deadline)
            if why is None:
                return
        raise CniError(INTERNAL, f"{_COMMANDS[self.version]}-restore: {why}")

    def _restore(self, script: str, deadline: Deadline) -> str | None:
        """Run a script; ``None``, or why it had no effect."""
        if not script:
            return None
        deadline.check("before iptables-restore")
        # Rounded up: to legacy iptables 0 is not to wait at all.
        seconds = math.ceil(deadline.remaining(_SECONDS) or 0) or 1
        done = self._run("restore", ["--noflush", "--wait", str(seconds)], script, deadline)
        return (done.stderr.strip() or f"exit status {done.returncode}") if done.returncode else None

    def _run(self, verb: str, args: Sequence[str], given: str, deadline: Deadline) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self.program, f"{_COMMANDS[self.version]}-{verb}", *args],
                input=given,
                capture_output=True,
                text=True,
                errors="replace",
                close_fds=False,
                check=False,
                timeout=deadline.remaining(_SECONDS),
            )
        except subprocess.TimeoutExpired as error:
            deadline.check(f"while {_COMMANDS[self.version]}-{verb} ran")
            raise CniError(INTERNAL, str(error)) from error
        except OSError as error:
            raise CniError(INTERNAL, f"{self.program}: {error.strerror}") from error

    def _may_have(self, table: str, chain: str) -> bool:
        """Whether a chain is there, as far as that can be told without running anything."""
        if not self.is_nft:
            with suppress(OSError):
                return table in Path(_TABLE_NAMES[self.version]).read_text().split()
            return False
        body = struct.pack("=BBH", _FAMILY[self.version], 0, 0) + text(_CHAIN_TABLE, table) + text(_CHAIN_NAME, chain)
        try:
            with Netlink(NETLINK_NETFILTER) as netlink:
                netlink.ask(Request(_GETCHAIN, 0, body, f"find chain {chain}"))
        except NetlinkError as error:
            return error.errno != errno.ENOENT
        return True


def find_iptables(version: int) -> Iptables | None:
    """The host's iptables of an IP version, if it has one of a kind that is known here."""
    found = shutil.which(_COMMANDS[version])
    if found is None:
        return None
    program = Path(found).resolve()
    return Iptables(str(program), version) if program.name in (_NFT, _LEGACY) else None


def both_known() -> bool:
    """Whether the host's iptables of both IP versions are of a kind that is known here."""
    return all(find_iptables(version) is not None for version in _COMMANDS)


def iptables(version: int) -> Iptables:
    """The host's iptables of an IP version.

    :raises CniError: it has none, or one that is not known here.
    """
    found = find_iptables(version)
    if found is None:
        raise CniError(INTERNAL, f"failed to open iptables: {_COMMANDS[version]} is not on this host")
    return found
