"""A network of fake plugins in this process that remember what they were called with."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forgeone_shim.config.model import CniConfig
from forgeone_shim.deadline import Deadline
from forgeone_shim.network.cni.network import CniNetwork
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation, Json, Plugin
from forgeone_shim.network.facts import PodFacts
from forgeone_shim.state.store import StateStore


@dataclass
class Fakes:
    """Plugins of the types ``first``, ``second``, ``third``; whatever else is asked for is a program."""

    calls: list[Invocation] = field(default_factory=list)
    failing: dict[tuple[str, Command], Exception] = field(default_factory=dict)
    before: Callable[[Invocation], None] = lambda _: None
    address: str = "10.9.0.2/24"
    dns: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.there: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def find(self, type_: str, _config: Mapping[str, Any]) -> Plugin | None:
        return self._call if type_ in {"first", "second", "third"} else None

    def _call(self, invocation: Invocation, deadline: Deadline) -> Json:
        with self._lock:
            self.calls.append(invocation)
        self.before(invocation)
        type_ = invocation.config["type"]
        if (type_, invocation.command) in self.failing:
            raise self.failing[type_, invocation.command]
        mine = (type_, invocation.container_id)
        if invocation.command is not Command.ADD:
            if invocation.command is Command.DEL:
                self.there.discard(mine)
            return {}
        self.there.add(mine)
        result = dict(invocation.config.get("prevResult") or self._result(invocation))
        return {**result, "routes": [*result.get("routes", []), {"dst": f"10.{len(result.get('routes', []))}.0.0/16"}]}

    def _result(self, invocation: Invocation) -> Json:
        return {
            "cniVersion": invocation.config["cniVersion"],
            "interfaces": [
                {"name": "veth0", "mac": "aa:aa:aa:aa:aa:aa"},
                {"name": invocation.ifname, "mac": "0a:58:0a:09:00:02", "sandbox": invocation.netns},
            ],
            "ips": [{"version": "4", "address": self.address, "interface": 1}],
            "dns": self.dns,
        }

    def told(self) -> list[str]:
        """The calls in order: command and type."""
        return [f"{call.command} {call.config['type']}" for call in self.calls]

    def fail(self, type_: str, command: Command, error: Exception | None = None) -> None:
        self.failing[type_, command] = error or CniError(999, "it is broken")


class Node:
    """A CNI network on a folder and a store of its own. Jobs to be repeated wait in ``jobs``."""

    def __init__(self, directory: Path, **config: Any) -> None:
        self.directory, self.folder = directory, directory / "net.d"
        self.folder.mkdir(exist_ok=True)
        self.config = CniConfig(conf_dir=str(self.folder), bin_dirs=(str(directory / "bin"),), **config)
        self.fakes = Fakes()
        self.jobs: list[tuple[str, Callable[[], None]]] = []
        self.open()

    def open(self) -> None:
        """As a new process would."""
        self.store = StateStore(self.directory / "db")
        self.network = CniNetwork(
            self.config, self.store, self.fakes.find, lambda name, job: self.jobs.append((name, job))
        )

    def restart(self) -> None:
        self.close()
        self.jobs.clear()
        self.open()

    def close(self) -> None:
        self.network.close()
        self.store.close()

    def write(self, *types: str | Json, file: str = "10-net.conflist", **keys: Any) -> None:
        plugins = [one if isinstance(one, dict) else {"type": one} for one in types]
        table = {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins} | keys
        made = self.folder / f"{file}.tmp"
        made.write_text(json.dumps(table))
        made.rename(self.folder / file)

    def pod(self, id_: str = "pod1", **facts: Any) -> PodFacts:
        names: dict[str, Any] = {"name": "web", "namespace": "default", "uid": "u-1"}
        return PodFacts(sandbox_id=id_, netns=facts.pop("netns", "/nowhere/net"), **(names | facts))

    def stored(self) -> list[str]:
        return [key for key, _ in self.store.items("cni.member", dict)]

    def run_jobs(self) -> None:
        jobs, self.jobs = self.jobs, []
        for _, job in jobs:
            job()
