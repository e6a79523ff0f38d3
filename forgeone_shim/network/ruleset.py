"""A pod's rules as messages to the kernel, and what the kernel answers about them. Pure.

The table lives in the pod's own network namespace. Its chains drop what no rule lets through, so that an emptied one
is closed and not open::

    ingress (prerouting, mangle)      egress (output, filter)               forward
      from loopback: accept             another's address to itself: drop     (drops all)
                                        to loopback: accept
      answers, ICMP errors: accept      answers, ICMP errors: accept
      neighbour discovery: accept       neighbour discovery: accept
                                        another's address: drop
      each Pass: accept                 each Pass: accept
      count, drop                       count, reset or reject

Where the pod is a machine behind the namespace, all three chains are of what is passed on (forward, one after the
other), and neighbours' words, which are for one link alone, do not pass. The namespace itself (input, output) talks to
neighbours and to the machine alone: some monitors, which a guest may have taken over, are in it. What the machine sends
under another's address, or to many, is dropped before (prerouting, the first of all): routing would answer the other
with an error, and what had been sent in it.

A pod that could send to itself under another's address would be its own accomplice: what it then sends there is an
answer. Where one direction is open, a connection that nobody saw begin is reset there: whoever's packet came first
would be taken for who began it.

Packets that come in are looked at before a redirection inside the pod changes their port, those that leave after it.
Only answers pass because of what passed before: whoever began something is held to the rules with each packet, so that
a rule that changes counts at once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from forgeone_shim.kernel import taps
from forgeone_shim.kernel.netlink import NLM_F_CREATE, Reply, Request, attribute, attributes, nested, text
from forgeone_shim.network import expressions as x
from forgeone_shim.network.nftables import SUBSYSTEM, genmsg
from forgeone_shim.network.policy import VERSIONS, Address, AddressSet, Pass, Ruleset

TABLE: Final = "forgeone_contract"
INGRESS, EGRESS, _FORWARD, _MACHINE = "ingress", "egress", "forward", "machine"
_TO_HERE, _FROM_HERE = "input", "output"

_NLM_F_APPEND: Final = 0x800
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 2, 3, 6
_NEWSET, _NEWSETELEM, _DELSETELEM = 9, 12, 14
_NEWGEN, _GETGEN, _NEWOBJ, _GETOBJ = 15, 16, 18, 19

_TABLE_NAME: Final = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_SET_TABLE, _SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_KEY_LEN, _SET_ID = 1, 2, 3, 4, 5, 10
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEM, _ELEM_KEY, _DATA_VALUE = 1, 2, 3, 1, 1, 1
_OBJ_TABLE, _OBJ_NAME, _OBJ_TYPE, _OBJ_DATA = 1, 2, 3, 4
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_GENERATION: Final = 1

_COUNTER: Final = 1
# The types are for nft(8), which shows addresses as such; the lengths are the kernel's.
_KEY: Final = {4: (7, 4), 6: (8, 16)}
_PREROUTING, _INPUT, _FORWARDING, _OUTPUT = 0, 1, 2, 3
# Behind connection tracking (-200), before destinations are translated (-100); behind both.
_MANGLE, _FILTER = -150, 0
# Before fragments are put together (-400): what is dropped takes no room.
_FIRST: Final = -450
_GENMSG_BYTES: Final = 4
# A message's size field has 16 bits.
_ELEMENTS_AT_ONCE: Final = 512

_LOOPBACK: Final = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
_TCP: Final = 6
_ICMPV6: Final = 58
_ICMPS: Final = {4: 1, 6: _ICMPV6}
# RFC 4861 and RFC 3810: solicitations, advertisements, and membership of the groups that those are sent to. A
# redirection (137) only says which way would be shorter.
_MULTICAST_QUERY, _MULTICAST_REPORT, _MULTICAST_DONE, _MULTICAST_REPORT_2 = 130, 131, 132, 143
_ROUTER_SOLICITATION, _ROUTER_ADVERTISEMENT, _NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT = 133, 134, 135, 136
_DISCOVERY: Final = {
    INGRESS: (_MULTICAST_QUERY, _ROUTER_ADVERTISEMENT, _NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT),
    EGRESS: (
        _MULTICAST_REPORT,
        _MULTICAST_DONE,
        _MULTICAST_REPORT_2,
        _ROUTER_SOLICITATION,
        _NEIGHBOUR_SOLICITATION,
        _NEIGHBOUR_ADVERTISEMENT,
    ),
}


@dataclass(frozen=True, slots=True)
class Count:
    """Packets that were refused, and the bytes in them."""

    packets: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Drops:
    """What was refused of a pod, each way, since its start."""

    egress: Count = Count()
    ingress: Count = Count()


def install(rules: Ruleset, drops: Drops) -> list[Request]:
    """Put the table in the place of whatever has its name; its counters go on from ``drops``."""
    table = genmsg() + text(_TABLE_NAME, TABLE)
    requests = [
        _create(_NEWTABLE, table, "table"),
        Request(SUBSYSTEM | _DELTABLE, 0, table, f"delete table {TABLE}"),
        _create(_NEWTABLE, table, "table"),
        _counter(INGRESS, drops.ingress),
        _counter(EGRESS, drops.egress),
    ]
    for number, group in enumerate(rules.groups, 1):
        requests += [_set(group, number), *_elements(_NEWSETELEM, group, group.addresses)]
    if rules.machine is not None:
        return requests + _passed_on(rules, rules.machine)
    if rules.ingress is None:
        # Not before: older kernels reset nothing there.
        requests.append(_chain(INGRESS, _INPUT, _FILTER))
        ingress = _open(INGRESS, x.came_by_loopback())
    else:
        requests.append(_chain(INGRESS, _PREROUTING, _MANGLE))
        ingress = _ingress(rules.ingress)
    requests += (_rule(INGRESS, rule) for rule in ingress)
    egress = _open(EGRESS, x.leaves_by_loopback()) if rules.egress is None else _egress(rules.egress)
    requests.append(_chain(EGRESS, _OUTPUT, _FILTER))
    requests += (_rule(EGRESS, rule) for rule in egress)
    # What others send through the pod is none of the pod's business.
    requests.append(_chain(_FORWARD, _FORWARDING, _FILTER))
    return requests


def _passed_on(rules: Ruleset, addresses: Sequence[Address]) -> list[Request]:
    """The chains where the pod is a machine behind the namespace."""
    requests = [_chain(_MACHINE, _PREROUTING, _FIRST)]
    requests += (_rule(_MACHINE, rule) for rule in _under_its_name(addresses))
    requests.append(_chain(EGRESS, _FORWARDING, _FILTER - 1))
    requests += (_rule(EGRESS, rule) for rule in _from_machine(rules.egress))
    requests.append(_chain(INGRESS, _FORWARDING, _FILTER))
    requests += (_rule(INGRESS, rule) for rule in _to_machine(rules.ingress))
    requests.append(_chain(_FORWARD, _FORWARDING, _FILTER + 1))
    for mine in (x.came_by(taps.NAME), x.leaves_by(taps.NAME)):
        requests.append(_rule(_FORWARD, mine + x.verdict(x.ACCEPT)))
    for chain, hook, rest in ((_TO_HERE, _INPUT, _to_here()), (_FROM_HERE, _OUTPUT, _from_here())):
        requests.append(_chain(chain, hook, _FILTER))
        requests += (_rule(chain, rule) for rule in rest)
    return requests


def change(before: Ruleset, after: Ruleset) -> list[Request] | None:
    """What turns the addresses of one into those of the other; ``None`` where more than that differs."""
    if not before.passes_as(after) or [one.name for one in before.groups] != [one.name for one in after.groups]:
        return None
    requests: list[Request] = []
    for old, new in zip(before.groups, after.groups, strict=True):
        had, has = set(old.addresses), set(new.addresses)
        requests += _elements(_DELSETELEM, new, sorted(had - has))
        requests += _elements(_NEWSETELEM, new, sorted(has - had))
    return requests


def ask_generation() -> Request:
    """Which generation the namespace's tables, all of them, are."""
    return Request(SUBSYSTEM | _GETGEN, 0, genmsg(), "find the generation of the tables")


def read_generation(replies: Iterable[Reply]) -> int:
    """The kernel's answer."""
    for reply in replies:
        if reply.type == SUBSYSTEM | _NEWGEN:
            found = attributes(reply.body[_GENMSG_BYTES:]).get(_GENERATION, b"")
            return int.from_bytes(found, "big")
    return 0


def next_generation(generation: int) -> int:
    """What a transaction makes of it."""
    return generation % 0xFFFFFFFF + 1


def ask_drops() -> list[Request]:
    """The counters; ENOENT where there is no table."""
    return [_ask_counter(INGRESS), _ask_counter(EGRESS)]


def read_drops(replies: Iterable[Reply]) -> Drops:
    """The kernel's answer."""
    found: dict[str, Count] = {}
    for reply in replies:
        if reply.type == SUBSYSTEM | _NEWOBJ:
            items = attributes(reply.body[_GENMSG_BYTES:])
            data = attributes(items.get(_OBJ_DATA, b""))
            packets, size = (int.from_bytes(data.get(key, b""), "big") for key in (_COUNTER_PACKETS, _COUNTER_BYTES))
            found[items.get(_OBJ_NAME, b"").rstrip(b"\0").decode(errors="replace")] = Count(packets, size)
    return Drops(egress=found.get(EGRESS, Count()), ingress=found.get(INGRESS, Count()))


def _open(chain: str, loopback: bytes) -> Iterator[bytes]:
    """A direction that the rule does not speak of."""
    yield loopback + x.verdict(x.ACCEPT)
    yield x.begins_in_the_middle() + x.counted(chain) + x.reset()
    yield x.verdict(x.ACCEPT)


def _ingress(passes: Sequence[Pass]) -> Iterator[bytes]:
    yield x.came_by_loopback() + x.verdict(x.ACCEPT)
    yield from _known(INGRESS)
    yield from (_let_through(one, source=True) for one in passes)
    # Neighbours' noise is nothing that was refused to anybody.
    yield x.is_for_many() + x.verdict(x.DROP)
    yield x.counted(INGRESS) + x.verdict(x.DROP)


def _to_machine(passes: Sequence[Pass] | None) -> Iterator[bytes]:
    yield x.leaves_by(taps.NAME, other=True) + x.verdict(x.ACCEPT)
    if passes is None:
        yield from _anybodys(INGRESS)
        return
    yield from _answers()
    yield from (_let_through(one, source=True) for one in passes)
    yield x.counted(INGRESS) + x.verdict(x.DROP)


def _under_its_name(addresses: Sequence[Address]) -> Iterator[bytes]:
    """Its kernel is the pod's own, and may send whatever it likes."""
    yield x.came_by(taps.NAME, other=True) + x.verdict(x.ACCEPT)
    # Of what is for everybody on a link nothing is passed on.
    yield x.is_for_many() + x.verdict(x.DROP)
    for version in VERSIONS:
        own = [packed for of, packed in addresses if of == version]
        yield x.is_not_from(version, own) + x.counted(EGRESS) + x.verdict(x.DROP)
    yield x.verdict(x.ACCEPT)


def _to_here() -> Iterator[bytes]:
    yield x.came_by_loopback() + x.verdict(x.ACCEPT)
    yield x.came_by(taps.NAME) + x.verdict(x.ACCEPT)
    yield from _known(INGRESS)


def _from_here() -> Iterator[bytes]:
    yield x.leaves_by_loopback() + x.verdict(x.ACCEPT)
    yield x.leaves_by(taps.NAME) + x.verdict(x.ACCEPT)
    # Errors and resets of what is passed on, which the kernel sends, are answers.
    yield from _known(EGRESS)
    yield x.counted(EGRESS) + x.verdict(x.DROP)


def _from_machine(passes: Sequence[Pass] | None) -> Iterator[bytes]:
    yield x.came_by(taps.NAME, other=True) + x.verdict(x.ACCEPT)
    if passes is None:
        yield from _anybodys(EGRESS)
        return
    yield from _answers()
    yield from (_let_through(one, source=False) for one in passes)
    yield x.protocol(_TCP) + x.counted(EGRESS) + x.reset()
    yield x.counted(EGRESS) + x.reject()


def _anybodys(chain: str) -> Iterator[bytes]:
    """A direction that the rule does not speak of, behind the namespace."""
    yield x.begins_in_the_middle() + x.counted(chain) + x.reset()
    yield x.verdict(x.ACCEPT)


def _egress(passes: Sequence[Pass]) -> Iterator[bytes]:
    forged = x.is_under_anothers_address() + x.counted(EGRESS) + x.verdict(x.DROP)
    # What resets a connection comes this way, too, and begins nothing.
    yield x.leaves_by_loopback() + x.begins() + forged
    yield x.leaves_by_loopback() + x.verdict(x.ACCEPT)
    # Redirected to the pod itself just now, the packet is still on its way to another interface.
    for own in _LOOPBACK:
        yield x.version(own.version) + x.address_in(own, source=False) + x.is_redirected() + x.verdict(x.ACCEPT)
    yield from _known(EGRESS)
    yield forged
    yield from (_let_through(one, source=False) for one in passes)
    # A socket that is about to connect hears of nothing else before it sends again, a second later.
    yield x.protocol(_TCP) + x.counted(EGRESS) + x.reset()
    yield x.counted(EGRESS) + x.reject()


@cache
def _answers() -> tuple[bytes, ...]:
    """What passes because of what passed before."""
    errors = (x.protocol(number) + x.is_about_known() for number in _ICMPS.values())
    return tuple(rule + x.verdict(x.ACCEPT) for rule in (x.is_answer(), *errors))


@cache
def _known(chain: str) -> tuple[bytes, ...]:
    """What each pod's chain lets through; a third of a transaction's work, so worked out once."""
    discovery = (x.version(6) + x.protocol(_ICMPV6) + x.icmp_type(kind) for kind in _DISCOVERY[chain])
    return (*_answers(), *(rule + x.verdict(x.ACCEPT) for rule in discovery))


def _let_through(one: Pass, *, source: bool) -> bytes:
    rule = x.version(one.version)
    if one.range is not None:
        rule += x.address_in(one.range, source=source)
    if one.group:
        rule += x.address_among(one.group, one.version, source=source)
    if one.protocol is not None:
        rule += x.protocol(one.protocol)
    if one.ports is not None:
        rule += x.port_in(one.ports.first, one.ports.last)
    return rule + x.verdict(x.ACCEPT)


def _create(kind: int, body: bytes, what: str, flags: int = 0) -> Request:
    return Request(SUBSYSTEM | kind, NLM_F_CREATE | flags, body, f"add {what} of table {TABLE}")


def _chain(name: str, hook: int, priority: int) -> Request:
    body = genmsg() + text(_CHAIN_TABLE, TABLE) + text(_CHAIN_NAME, name)
    body += nested(_CHAIN_HOOK, _number(_HOOK_NUMBER, hook), attribute(_HOOK_PRIORITY, struct.pack(">i", priority)))
    body += _number(_CHAIN_POLICY, x.DROP) + text(_CHAIN_TYPE, "filter")
    return _create(_NEWCHAIN, body, f"chain {name}")


def _rule(chain: str, rule: bytes) -> Request:
    body = genmsg() + text(_RULE_TABLE, TABLE) + text(_RULE_CHAIN, chain) + nested(_RULE_EXPRESSIONS, rule)
    return _create(_NEWRULE, body, f"a rule of chain {chain}", _NLM_F_APPEND)


def _counter(name: str, start: Count) -> Request:
    body = genmsg() + text(_OBJ_TABLE, TABLE) + text(_OBJ_NAME, name) + _number(_OBJ_TYPE, _COUNTER)
    numbers = ((_COUNTER_BYTES, start.bytes), (_COUNTER_PACKETS, start.packets))
    body += nested(_OBJ_DATA, *(attribute(key, value.to_bytes(8, "big")) for key, value in numbers))
    return _create(_NEWOBJ, body, f"counter {name}")


def _ask_counter(name: str) -> Request:
    body = genmsg() + text(_OBJ_TABLE, TABLE) + text(_OBJ_NAME, name) + _number(_OBJ_TYPE, _COUNTER)
    return Request(SUBSYSTEM | _GETOBJ, 0, body, f"read counter {name} of table {TABLE}")


def _set(group: AddressSet, number: int) -> Request:
    key_type, width = _KEY[group.version]
    body = genmsg() + text(_SET_TABLE, TABLE) + text(_SET_NAME, group.name) + _number(_SET_FLAGS, 0)
    body += _number(_SET_KEY_TYPE, key_type) + _number(_SET_KEY_LEN, width) + _number(_SET_ID, number)
    return _create(_NEWSET, body, f"set {group.name}")


def _elements(kind: int, group: AddressSet, addresses: Sequence[bytes]) -> Iterator[Request]:
    for start in range(0, len(addresses), _ELEMENTS_AT_ONCE):
        listed = addresses[start : start + _ELEMENTS_AT_ONCE]
        items = (nested(_LIST_ELEM, nested(_ELEM_KEY, attribute(_DATA_VALUE, key))) for key in listed)
        body = genmsg() + text(_LIST_TABLE, TABLE) + text(_LIST_SET, group.name) + nested(_LIST_ELEMENTS, *items)
        flags = NLM_F_CREATE if kind == _NEWSETELEM else 0
        yield Request(SUBSYSTEM | kind, flags, body, f"change set {group.name} of table {TABLE}")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))
