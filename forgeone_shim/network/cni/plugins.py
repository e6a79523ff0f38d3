"""The plugins at hand: which run in this process, which are programs, and what versions they have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from forgeone_shim.config.model import CniConfig
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.network.cni import execute
from forgeone_shim.network.cni.chain import Chain
from forgeone_shim.network.cni.config import Folder, NetworkList
from forgeone_shim.network.cni.execute import Program, find_program
from forgeone_shim.network.cni.plugin import Json, Plugin

Find = Callable[[str, Mapping[str, Any]], Plugin | None]
"""The plugin of a type and a configuration that runs in this process, if there is one."""


class Plugins:
    """Of one configuration. Thread-safe."""

    def __init__(self, config: CniConfig, find: Find) -> None:
        self._config, self._find = config, find
        self._versions: dict[str, str] = {}
        self.chain = Chain(self._resolve, config.bin_dirs, config.timeout)

    def settle(self, network: NetworkList, deadline: Deadline) -> NetworkList:
        """The network in the newest version that all its plugins support, where its configuration leaves a choice.

        :raises FailedPrecondition: they have none in common.
        :raises CniError: a plugin does not tell.
        :raises DeadlineExceeded: the deadline passed first.
        """
        if not network.candidates:
            return network
        key = f"{network.source} {network.candidates} {network.types}"
        version = self._versions.get(key)
        if version is None:
            version = self._versions[key] = self._ask_versions(network, deadline)
        return replace(network, version=version)

    def forget_versions(self) -> None:
        """Programs may be others by now."""
        self._versions.clear()

    def missing(self, folder: Folder) -> str:
        """What is said of the first plugin that is nowhere; empty where all are there."""
        for network in folder.networks:
            for plugin in network.plugins:
                if self._is_program(network, plugin) and find_program(plugin["type"], self._config.bin_dirs) is None:
                    folders = ", ".join(self._config.bin_dirs)
                    return f"{network.source}: there is no plugin {plugin['type']!r} in {folders}"
        return ""

    def _resolve(self, type_: str, config: Mapping[str, Any]) -> Plugin:
        here = self._find(type_, config) if self._config.in_process else None
        return here if here is not None else Program(type_)

    def _is_program(self, network: NetworkList, plugin: Json) -> bool:
        config = {**plugin, "name": network.name, "cniVersion": network.version}
        return isinstance(self._resolve(plugin["type"], config), Program)

    def _ask_versions(self, network: NetworkList, deadline: Deadline) -> str:
        common = set(network.candidates)
        for plugin in network.plugins:
            if self._is_program(network, plugin):
                limited = Deadline.after(deadline.remaining(self._config.timeout))
                common &= set(execute.versions(plugin["type"], self._config.bin_dirs, limited))
        if not common:
            asked, types = ", ".join(network.candidates), ", ".join(network.types)
            raise FailedPrecondition(f"{network.source}: the plugins {types} have no version in common of {asked}")
        return next(version for version in network.candidates if version in common)
