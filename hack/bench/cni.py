#!/usr/bin/env python3
"""How long the well-known CNI plugins take: the distribution's programs, and the same done in-process, in milliseconds.

    python -m hack.bench.cni --pods 30

As root. Each has a network namespace of its own for a host, and nothing of it is left. The median of all pods is shown,
for ADD and DEL.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from forgeone_shim.deadline import NEVER
from forgeone_shim.kernel import namespaces
from forgeone_shim.kernel.syscalls import number, syscall
from forgeone_shim.network.cni.plugin import Command, Invocation
from forgeone_shim.network.cni.wellknown import find

_PROGRAMS = Path("/usr/lib/cni")

Call = Callable[[Invocation], dict[str, Any]]


def main(argv: Sequence[str]) -> int:
    """Run it; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=30)
    parser.add_argument("--programs", type=Path, default=_PROGRAMS, help="folder of the plugins' programs")
    options = parser.parse_args(argv)
    print(f"{'plugins':32} {'programs ADD':>13} {'DEL':>7} {'in-process ADD':>15} {'DEL':>7}")
    for name, plugins in _networks().items():
        row = [f"{name:32}"]
        for call in (_by_program(options.programs), _in_process):
            add, delete = _measure(plugins, call, options.pods)
            row.append(f"{add:{13 if call is not _in_process else 15}.1f} {delete:7.1f}")
        print(" ".join(row))
    return 0


def _networks() -> dict[str, list[dict[str, Any]]]:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "bench0", "isGateway": True, "hairpinMode": True, "ipam": ipam}
    port = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    portmap: dict[str, Any] = {"type": "portmap"}
    firewall = {"type": "firewall", "backend": "iptables"}
    limits = {"ingressRate": 10**8, "ingressBurst": 10**7, "egressRate": 10**8, "egressBurst": 10**7}
    mapped = {**portmap, "runtimeConfig": {"portMappings": [port]}}
    return {
        "bridge, portmap without ports": [bridge, portmap],
        "bridge, portmap with a port": [bridge, mapped],
        "bridge with ipMasq": [{**bridge, "ipMasq": True}],
        "bridge, firewall": [bridge, firewall],
        "bridge, bandwidth": [bridge, {"type": "bandwidth", **limits}],
        "all of them": [{**bridge, "ipMasq": True}, mapped, firewall, {"type": "bandwidth", **limits}],
    }


def _measure(plugins: list[dict[str, Any]], call: Call, pods: int) -> tuple[float, float]:
    with (
        tempfile.TemporaryDirectory(prefix="forgeone-bench-") as directory,
        ThreadPoolExecutor(1, initializer=_new_host) as host,
    ):
        return host.submit(_life, plugins, call, pods, Path(directory)).result()


def _new_host() -> None:
    syscall(number("unshare"), namespaces.CLONE_NEWNET)
    namespaces.raise_loopback()


def _life(plugins: list[dict[str, Any]], call: Call, pods: int, directory: Path) -> tuple[float, float]:
    network = json.loads(json.dumps(plugins))
    network[0]["ipam"]["dataDir"] = str(directory / "store")
    names = [f"pod{number}" for number in range(pods)]
    results: dict[str, Any] = {}

    def round_of(command: Command, name: str) -> None:
        """One round through the plugins for a pod."""
        result = results.get(name)
        for plugin in network if command is Command.ADD else reversed(network):
            config = {**plugin, "name": "bench", "cniVersion": "1.0.0", **({"prevResult": result} if result else {})}
            netns = str(directory / name / "net")
            answer = call(Invocation(command=command, config=config, container_id=name, netns=netns, ifname="eth0"))
            if command is Command.ADD:
                results[name] = result = answer

    try:
        for name in names:
            namespaces.pin_namespaces(directory / name, ("net",))
        added = [_timed(partial(round_of, Command.ADD, name)) for name in names]
        gone = [_timed(partial(round_of, Command.DEL, name)) for name in names]
    finally:
        for name in names:
            namespaces.unpin(directory / name)
    return median(added), median(gone)


def _timed(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return (time.perf_counter() - begin) * 1000


def _in_process(invocation: Invocation) -> dict[str, Any]:
    plugin = find(str(invocation.config["type"]), invocation.config)
    if plugin is None:
        raise SystemExit(f"{invocation.config['type']} is not done in-process on this host")
    return plugin(invocation, NEVER)


def _by_program(folder: Path) -> Call:
    def call(invocation: Invocation) -> dict[str, Any]:
        env = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": invocation.command,
            "CNI_CONTAINERID": invocation.container_id,
            "CNI_NETNS": invocation.netns,
            "CNI_IFNAME": invocation.ifname,
            "CNI_PATH": str(folder),
        }
        program = folder / str(invocation.config["type"])
        done = subprocess.run(
            [str(program)], input=json.dumps(invocation.config).encode(), env=env, capture_output=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{program}: {done.stdout.decode()}")
        return dict(json.loads(done.stdout)) if done.stdout.strip() else {}

    return call


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
