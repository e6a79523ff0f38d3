"""Keeps the pods of this node to the network rules of their contracts.

A pod's table is made before anybody is told of the pod, and follows the pods that its rule names as they come and go.
The kernel holds packets to it whether this process lives or not. The generation that a transaction made of the
namespace's tables tells, later, whether anybody else has changed any of them; the pod's is then made anew.

Each pod with a rule has a netlink socket here, in its namespace: to make one takes a thread, to close one 10 ms.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from threading import Lock
from typing import Final

import structlog

from forgeone_shim.contract.model import NetworkRule
from forgeone_shim.errors import InternalError, InvalidInput, NotFound
from forgeone_shim.kernel import taps, traffic
from forgeone_shim.kernel.namespaces import run_in
from forgeone_shim.kernel.netlink import NETLINK_NETFILTER, Netlink
from forgeone_shim.network import conntrack, links, policy, ruleset
from forgeone_shim.network.nftables import transact
from forgeone_shim.network.policy import Address, Local, Ruleset, Surroundings
from forgeone_shim.network.ruleset import Drops

_ROOM: Final = 8 << 20
_TRIES: Final = 8
_UNKNOWN: Final = -1

Retry = Callable[[str, Callable[[], None]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restraint:
    """A pod and the rule that it is kept to. ``netns`` is the path of its network namespace.

    ``machine`` says that what is sent and got there is that of a machine behind it.
    """

    sandbox_id: str
    netns: str
    pod: Local
    resolvers: tuple[str, ...] = ()
    rule: NetworkRule | None = None
    machine: bool = False

    @property
    def restricts(self) -> bool:
        """Whether there is anything to enforce."""
        return self.rule is not None and self.rule.restricts


class _Held:
    """What one pod's namespace has of ours."""

    def __init__(self, restraint: Restraint) -> None:
        self.restraint = restraint
        self.rules: Ruleset | None = None
        self.generation = _UNKNOWN
        self.outdated = False
        """Flows may be known that began under another rule."""
        self._planned: tuple[NetworkRule, tuple[str, ...], Ruleset] | None = None
        self.netlink = run_in(restraint.netns, lambda: Netlink(NETLINK_NETFILTER))
        self.netlink.grow(_ROOM)

    def plan(self, node: tuple[Address, ...], pods: tuple[Local, ...]) -> Ruleset:
        """What its table is to be now."""
        rule, resolvers = self.restraint.rule or NetworkRule(), self.restraint.resolvers
        facts = Surroundings(node=node, resolvers=resolvers, pods=pods)
        if self._planned is not None and self._planned[:2] == (rule, resolvers):
            return replace(self._planned[2], groups=policy.groups(rule, facts))
        made = policy.plan(rule, facts)
        if self.restraint.machine:
            made = replace(made, machine=self.restraint.pod.addresses)
        self._planned = (rule, resolvers, made)
        return made

    @property
    def selected(self) -> frozenset[str]:
        """The pods that its rule names."""
        rule = self.restraint.rule
        return frozenset() if rule is None else policy.selected(rule)


class Enforcement:
    """Thread-safe. ``retry`` runs a named job until it does not raise."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._report: Callable[[str], object] = lambda _: None
        self._lock = Lock()
        self._pods: dict[str, Restraint] = {}
        self._held: dict[str, _Held] = {}
        self._log = structlog.get_logger("enforcement")

    def report_to(self, report: Callable[[str], object]) -> None:
        """Whom to tell, by the pod's id, that somebody had changed its tables; must return quickly."""
        self._report = report

    def know(self, restraint: Restraint) -> None:
        """A pod that was there before this process: rules may name it from now on, its own is for :meth:`enforce`."""
        with self._lock:
            self._pods[restraint.sandbox_id] = restraint

    def admit(self, restraint: Restraint) -> None:
        """A new pod: it is kept to its rule when this returns, and those that may talk to it can. May be repeated.

        :raises InvalidInput: the rule cannot be enforced.
        :raises NotFound: the pod has no network namespace any more.
        :raises InternalError: the kernel refused.
        """
        id_ = restraint.sandbox_id
        with ExitStack() as undo:
            with self._lock:
                before = self._pods.get(id_)
                self._pods[id_] = restraint
            if before is None:
                undo.callback(self.forget, id_)
            self._keep(restraint)
            undo.pop_all()
        if before is None or before.pod != restraint.pod:
            self._announce(restraint)

    def enforce(self, restraint: Restraint) -> None:
        """Keep a pod that is known to its rule, which may be another by now.

        When this returns the kernel has the rule as it is meant, whatever has happened to the pod's tables. It is next
        to nothing where nothing has.

        :raises NotFound: the pod is leaving, or has no network namespace any more.
        :raises InternalError: the kernel refused. The pod may then have no container.
        """
        with self._lock:
            self._require(restraint.sandbox_id)
            self._pods[restraint.sandbox_id] = restraint
        self._keep(restraint)

    def holds(self, sandbox_id: str) -> bool:
        """Whether a pod is kept to a rule."""
        return sandbox_id in self._held

    def forget(self, sandbox_id: str) -> None:
        """A pod that is leaving: when this returns nobody may talk to its addresses because of a rule that names it.

        An unknown one is no error.

        :raises InternalError: the kernel refused; it is as if this had not been called.
        """
        with self._lock, _kernel_errors(f"take sandbox {sandbox_id} out of network rules"):
            leaving = self._pods.pop(sandbox_id, None)
            if leaving is None:
                return
            try:
                concerned = self._concerned(leaving)
                node = node_addresses() if concerned else ()
                for held in concerned:
                    self._update(held, node)
            except BaseException:
                self._pods[sandbox_id] = leaving
                raise
            own = self._held.pop(sandbox_id, None)
        if own is not None:
            # Nobody waits for the kernel to free the tables.
            self._retry(f"let go of the network of sandbox {sandbox_id[:13]}", own.netlink.close)

    def drops(self, sandbox_id: str) -> Drops | None:
        """What was refused of a pod; ``None`` unless it is kept to a rule."""
        with self._lock, _kernel_errors(f"count what was refused of sandbox {sandbox_id}"):
            held = self._held.get(sandbox_id)
            return None if held is None else self._drops(held)

    def close(self) -> None:
        """Let go of the sockets; the kernel keeps the rules."""
        with self._lock:
            held, self._held = self._held, {}
            for one in held.values():
                one.netlink.close()

    def _require(self, sandbox_id: str) -> None:
        # What came after a pod's leave would stay, and let whoever gets its addresses next be taken for it.
        if sandbox_id not in self._pods:
            raise NotFound("attached pod", sandbox_id)

    def _keep(self, restraint: Restraint) -> None:
        id_ = restraint.sandbox_id
        held = self._held.get(id_)
        if held is None and not restraint.restricts:
            return
        with _kernel_errors(f"keep sandbox {id_} to its network rule"):
            node = node_addresses()
            # Each time: what it was to be when it was connected may not be what was thought here.
            if restraint.machine and restraint.restricts and run_in(restraint.netns, _is_passed_by):
                raise InvalidInput(
                    "network", "there was no rule when the pod's machine was connected, so that its packets pass none"
                )
            opened = _Held(restraint) if held is None else None
            with self._lock:
                try:
                    self._require(id_)
                    held = self._held.get(id_) or opened
                    if held is None:
                        raise NotFound("attached pod", id_)
                    self._held[id_] = held
                    held.restraint = restraint
                    self._update(held, node)
                finally:
                    if opened is not None and self._held.get(id_) is not opened:
                        opened.netlink.close()

    def _announce(self, arrived: Restraint) -> None:
        """Let others talk to a new pod. One that cannot be told stays closed to it a little longer."""
        with self._lock:
            for held in self._concerned(arrived):
                try:
                    self._update(held, node_addresses())
                except OSError as error:
                    id_ = held.restraint.sandbox_id
                    self._log.warning("its rules will be brought up to date", sandbox=id_, error=str(error))
                    self._retry(f"bring network rules of sandbox {id_[:13]} up to date", partial(self._again, id_))

    def _again(self, sandbox_id: str) -> None:
        with self._lock:
            held = self._held.get(sandbox_id)
            if held is not None:
                self._update(held, node_addresses())

    def _concerned(self, other: Restraint) -> list[_Held]:
        """Those whose rules name that pod."""
        return [
            held
            for id_, held in self._held.items()
            if id_ != other.sandbox_id and any(policy.means(one, other.pod) for one in held.selected)
        ]

    def _update(self, held: _Held, node: tuple[Address, ...]) -> None:
        """Bring the kernel in line with the rule, the pods and the node of now. Raises OSError."""
        wanted = held.plan(node, tuple(one.pod for one in self._pods.values()))
        held.outdated |= held.rules is not None and not held.rules.passes_as(wanted)
        changed = False
        for _ in range(_TRIES):
            generation = ruleset.read_generation(held.netlink.ask(ruleset.ask_generation()))
            untouched = generation == held.generation
            if untouched and wanted == held.rules:
                return
            changed = changed or (held.rules is not None and not untouched)
            requests = ruleset.change(held.rules, wanted) if held.rules is not None and untouched else None
            if requests is None:
                requests = ruleset.install(wanted, self._drops(held))
            rules, held.rules, held.generation = held.rules, None, _UNKNOWN
            errors = transact(held.netlink, requests, generation)
            if not errors:
                if held.outdated:
                    # Answers pass because of what passed before; what did may be forbidden now.
                    conntrack.forget_all(held.netlink)
                    held.outdated = False
                held.rules, held.generation = wanted, ruleset.next_generation(generation)
                if changed:
                    self._tell(held.restraint.sandbox_id)
                return
            if errors[0].errno != errno.ERESTART and rules is None:
                raise errors[0]
        raise OSError(errno.EBUSY, "somebody keeps changing the pod's tables")

    def _tell(self, sandbox_id: str) -> None:
        self._log.warning("somebody had changed its tables; its rules are back", sandbox=sandbox_id)
        try:
            self._report(sandbox_id)
        except Exception as error:
            # The rules are what counts.
            self._log.warning("that was not recorded", sandbox=sandbox_id, error=str(error))

    @staticmethod
    def _drops(held: _Held) -> Drops:
        replies, errors = held.netlink.try_all(ruleset.ask_drops())
        refused = [error for error in errors if error.errno != errno.ENOENT]
        if refused:
            raise refused[0]
        return ruleset.read_drops(replies)


def node_addresses() -> tuple[Address, ...]:
    """Under which the node talks to its pods. Raises OSError."""
    with Netlink() as netlink:
        found = links.parse_addresses(netlink.ask(links.list_addresses()))
    return tuple((one.version, one.packed) for one in found if not (one.is_loopback or _is_everybodys(one)))


def _is_passed_by() -> bool:
    """Whether packets of a machine are redirected, here, before any rule sees them. Raises OSError."""
    with Netlink() as netlink:
        found = [one.index for one in links.parse_links(netlink.ask(links.list_links())) if one.name == taps.NAME]
        return any(traffic.has_ingress(netlink.ask(traffic.list_qdiscs(index)), index) for index in found)


def _is_everybodys(address: IPv4Address | IPv6Address) -> bool:
    """Whether it says nothing of who has it: each link has its own such range."""
    return address.version == 6 and address.is_link_local


@contextmanager
def _kernel_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InternalError(f"{what}: {error.strerror or error}") from error
