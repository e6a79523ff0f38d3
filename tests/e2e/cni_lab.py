"""Two worlds for CNI plugins: in one the distribution's programs run, in the other the same is done in-process.

A world is a host (a network namespace of its own) with pods (more of them) and an IPAM store. :meth:`World.snapshot` is
all that a plugin could have changed there, with what differs by chance written alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from forgeone_shim.deadline import Deadline
from forgeone_shim.kernel import namespaces
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation
from forgeone_shim.network.cni.wellknown import find

PROGRAMS = Path("/usr/lib/cni")
DataDir = "DATADIR"
_TIMERS = re.compile(r".*_timer$|^topology_change|^config_pending$|^(hold|root_path_cost)$")
_MAC = re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b")
_BRIDGE_ID = re.compile(r"\b8000\.[0-9a-f:]+")
_VETH = re.compile(r"\bveth[0-9a-f]{8}\b")
_LINK_LOCAL = re.compile(r"\bfe80::[0-9a-f:]+")
_SOLICITED = re.compile(r"\bff02::1:ff[0-9a-f:]+")
_COUNTERS = re.compile(r"\[\d+:\d+\]|counter packets \d+ bytes \d+")
_SYSCTLS = (
    "ipv4/conf/{}/arp_notify",
    "ipv4/conf/{}/route_localnet",
    "ipv4/conf/{}/forwarding",
    "ipv6/conf/{}/accept_dad",
    "ipv6/conf/{}/accept_ra",
    "ipv6/conf/{}/disable_ipv6",
    "ipv6/conf/{}/enhanced_dad",
    "ipv6/conf/{}/forwarding",
    "ipv6/conf/{}/addr_gen_mode",
)


def run(*argv: str, **more: Any) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, **more).stdout


def by_program(kind: str, invocation: Invocation) -> dict[str, Any]:
    """What CNI's runtime does: executes the plugin."""
    env = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": invocation.command,
        "CNI_CONTAINERID": invocation.container_id,
        "CNI_NETNS": invocation.netns,
        "CNI_IFNAME": invocation.ifname,
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in invocation.args.items()),
        "CNI_PATH": str(PROGRAMS),
    }
    given = json.dumps(invocation.config)
    done = subprocess.run([str(PROGRAMS / kind)], input=given, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        error = json.loads(done.stdout)
        raise CniError(error["code"], error["msg"], error.get("details", ""))
    return dict(json.loads(done.stdout)) if done.stdout.strip() else {}


def in_process(kind: str, invocation: Invocation) -> dict[str, Any]:
    plugin = find(kind, invocation.config)
    assert plugin is not None, f"{kind} is left to its program: {invocation.config}"
    return plugin(invocation, Deadline.after(60))


Doer = Callable[[str, Invocation], dict[str, Any]]


class World:
    """A host, for the thread that makes it, which is to be in a network namespace of its own."""

    def __init__(
        self, directory: Path, plugins: Sequence[Mapping[str, Any]], version: str = "1.0.0", *, patient: bool = False
    ) -> None:
        self.directory = directory
        self.store = directory / "store"
        self.version = version
        text = json.dumps(plugins).replace(DataDir, str(self.store))
        self.plugins: list[dict[str, Any]] = json.loads(text)
        self.results: dict[str, dict[str, Any]] = {}
        self._undo = contextlib.ExitStack()
        self._pods: dict[str, str] = {}
        if not patient:
            # The host's own duplicate detection takes a second a step.
            for which in ("all", "default"):
                Path(f"/proc/sys/net/ipv6/conf/{which}/accept_dad").write_text("0")

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def pod(self, name: str) -> str:
        """A new network namespace; its path."""
        if name not in self._pods:
            directory = self.directory / name
            namespaces.pin_namespaces(directory, ("net",))
            self._undo.callback(namespaces.unpin, directory)
            self._pods[name] = str(directory / "net")
        return self._pods[name]

    def remove_pod(self, name: str) -> None:
        """The namespace goes before anyone said DEL."""
        namespaces.unpin(self.directory / name)

    def call(self, do: Doer, command: Command, pod: str, *, netns: str | None = None, **args: str) -> Any:
        """One round through the plugins, in the order the specification has for the command."""
        path = self.pod(pod) if netns is None else netns
        result = self.results.get(pod) if command is not Command.ADD else None
        order = reversed(self.plugins) if command is Command.DEL else self.plugins
        for plugin in order:
            config = {**plugin, "name": "lab-net", "cniVersion": self.version}
            if result:
                config["prevResult"] = result
            invocation = Invocation(
                command=command,
                config=config,
                container_id=f"{pod}-{'0' * 60}",
                netns=path,
                ifname="eth0",
                args=args,
                path=(str(PROGRAMS),),
            )
            answer = do(plugin["type"], invocation)
            if command is Command.ADD:
                result = answer
        if command is Command.ADD:
            assert result is not None
            self.results[pod] = result
        return result

    def settle(self) -> None:
        """Wait until the kernel has done its part of IPv6."""
        for path in (None, *(path for path in self._pods.values() if _is_pinned(path))):
            end = time.monotonic() + 5
            while not _in(path, _has_settled):
                assert time.monotonic() < end
                time.sleep(0.05)
        end = time.monotonic() + 5
        while not _carriers_are_told():
            assert time.monotonic() < end
            time.sleep(0.05)

    def snapshot(self) -> dict[str, Any]:
        """All there is, but for what is random."""
        self.settle()
        seen = {
            "results": self.results,
            "host": _look(host=True),
            "pods": {
                name: _in(path, lambda: _look(host=False)) for name, path in self._pods.items() if _is_pinned(path)
            },
            "store": self.files(),
        }
        text = json.dumps(seen).replace(str(self.directory), "WORLD")
        text = _number(_BRIDGE_ID, text, "bridge-id")
        text = _number(_LINK_LOCAL, _number(_VETH, _number(_MAC, text, "mac"), "veth"), "link-local")
        found = dict(json.loads(_number(_SOLICITED, text, "solicited")))
        for look in (found["host"], *found["pods"].values()):
            # In the kernel's order, which is that of random addresses.
            look["routes"].sort(key=json.dumps)
        return found

    def files(self) -> dict[str, Any]:
        """What is in the IPAM store, byte for byte."""
        found = sorted(self.store.rglob("*")) if self.store.exists() else []
        return {
            str(path.relative_to(self.store)): [f"{path.stat().st_mode:o}", path.read_bytes().decode("latin-1")]
            if path.is_file()
            else f"{path.stat().st_mode:o}"
            for path in found
        }


def differences(expected: object, found: object) -> list[str]:
    """What is not alike in two lists of snapshots, line by line, after the path to it."""
    one, two = dict(_leaves(expected, "")), dict(_leaves(found, ""))
    return [f"{key}: {one.get(key)!r} != {two.get(key)!r}" for key in {**one, **two} if one.get(key) != two.get(key)]


def _leaves(item: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(item, dict | list) and item:
        for key, value in item.items() if isinstance(item, dict) else enumerate(item):
            yield from _leaves(value, f"{path}/{key}")
    else:
        yield path, item


def _has_settled() -> bool:
    """Every link has its link-local address, and no address is being probed for."""
    for link in json.loads(run("ip", "-json", "address")):
        if link["ifname"] == "lo" or "LOWER_UP" not in link["flags"]:
            continue
        addresses = link["addr_info"]
        if any("tentative" in item for item in addresses) or all(item["scope"] != "link" for item in addresses):
            return False
    return True


def _carriers_are_told() -> bool:
    """A bridge learns late that it has no port any more."""
    links = json.loads(run("ip", "-json", "-details", "link"))
    with_port = {link["master"] for link in links if "master" in link and "LOWER_UP" in link["flags"]}
    bridges = [link for link in links if link.get("linkinfo", {}).get("info_kind") == "bridge"]
    return all(
        ("LOWER_UP" in link["flags"], link["operstate"])
        == ((True, "UP") if link["ifname"] in with_port else (False, "DOWN"))
        for link in bridges
    )


def _is_pinned(path: str) -> bool:
    return f" {path} " in Path("/proc/self/mountinfo").read_text()


def _in(path: str | None, function: Callable[[], Any]) -> Any:
    return function() if path is None else namespaces.run_in(path, function)


def _number(pattern: re.Pattern[str], text: str, word: str) -> str:
    """Give each random thing a number, in the order of their appearance."""
    names: dict[str, str] = {}
    fixed = ("00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff")

    def replace(match: re.Match[str]) -> str:
        found = match.group()
        return found if found in fixed else names.setdefault(found, f"{word}#{len(names)}")

    return pattern.sub(replace, text)


def _look(*, host: bool) -> dict[str, Any]:
    links = json.loads(run("ip", "-json", "-details", "link"))
    names = [link["ifname"] for link in links]
    seen: dict[str, Any] = {
        "links": [_calm(link) for link in links],
        "addresses": [
            [link["ifname"], [_calm(item) for item in link["addr_info"]]]
            for link in json.loads(run("ip", "-json", "address"))
        ],
        "routes": [
            route
            for version in ("-4", "-6")
            for route in json.loads(run("ip", "-json", version, "-details", "route", "show", "table", "all"))
        ],
        "neighbours": json.loads(run("ip", "-json", "neighbour", "show", "nud", "permanent")),
        "sysctls": {
            pattern.format(name): _sysctl(pattern.format(name)) for name in (*names, "all") for pattern in _SYSCTLS
        },
        "qdiscs": [_calm(item) for item in json.loads(run("tc", "-json", "-details", "qdisc"))],
        "filters": {
            name: json.loads(run("tc", "-json", "-details", "filter", "show", "dev", name, "parent", "ffff:") or "[]")
            for name in names
        },
        "classes": {name: run("tc", "class", "show", "dev", name) for name in names},
    }
    if host:
        seen["ip_forward"] = _sysctl("ipv4/ip_forward")
        seen["iptables"] = iptables_save()
    return seen


def iptables_save() -> dict[str, list[str]]:
    """All rules and the chains that are not built in, of both IP versions; tables without any are as good as absent."""
    found: dict[str, list[str]] = {}
    for program in ("iptables-save", "ip6tables-save"):
        table = ""
        for line in run(program).splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith("-A") or (line.startswith(":") and line.split()[1] == "-"):
                found.setdefault(f"{program} {table}", []).append(_COUNTERS.sub("", line))
    if "nf_tables" in run("iptables", "--version"):
        for family in ("ip", "ip6"):
            listed = _COUNTERS.sub("", run("nft", "list", "tables", family)).splitlines()
            for name in (line.split()[2] for line in listed):
                text = _COUNTERS.sub("", run("nft", "list", "table", family, name))
                rules = [line.strip() for line in text.splitlines() if line.startswith("\t\t") and "hook" not in line]
                if rules:
                    found[f"nft {family} {name}"] = rules
    return found


def _calm(item: Any) -> Any:
    """Without timers, and without life times that pass."""
    if isinstance(item, dict):
        drop = ("valid_life_time", "preferred_life_time")
        return {k: _calm(v) for k, v in item.items() if not _TIMERS.match(k) and k not in drop}
    return [_calm(each) for each in item] if isinstance(item, list) else item


def _sysctl(path: str) -> str | None:
    try:
        return Path("/proc/sys/net", path).read_text().strip()
    except OSError:
        return None
