"""One pod and one network: its plugins called in order, each with what the ones before it did.

CNI specification, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError
from forgeone_shim.network.cni import results
from forgeone_shim.network.cni.capabilities import runtime_config
from forgeone_shim.network.cni.config import NetworkList
from forgeone_shim.network.cni.execute import BAD_ANSWER
from forgeone_shim.network.cni.members import Joined, Member
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation, Json, Plugin

Resolve = Callable[[str, Mapping[str, Any]], Plugin]
"""The plugin of a type for a configuration."""


class Chain:
    """Calls plugins, each for ``timeout`` seconds at most.

    :param path: the folders to find plugins in.
    """

    def __init__(self, resolve: Resolve, path: Sequence[str], timeout: float) -> None:
        self._resolve, self._path, self._timeout = resolve, tuple(path), timeout

    def add(self, member: Member, joined: Joined, deadline: Deadline, done: Callable[[Json], None]) -> Json:
        """ADD, first to last; the last result. ``done`` is told the result of each plugin before that.

        :raises CniError: a plugin refused or failed; those before it have been added.
        """
        network, result = joined.network, None
        to = self._to(Command.ADD, member, joined, member.netns)
        for plugin in network.plugins:
            if result is not None:
                done(result)
            config = _config(network, plugin, member.capabilities, result)
            answer = self._call(network, replace(to, config=config), deadline)
            try:
                result = results.convert(answer, network.version)
            except results.BadResult as error:
                bad = CniError(BAD_ANSWER, f"what it answered is no result: {error}")
                raise _told(network, plugin, Command.ADD, bad) from None
        return result or {}

    def delete(self, member: Member, joined: Joined, netns: str, deadline: Deadline) -> None:
        """DEL, last to first, with what ADD gave; ``netns`` is empty where the namespace is gone.

        :raises CniError: a plugin failed; those before it in the list have not been deleted.
        """
        network = joined.network
        result = joined.result if network.at_least("0.4.0") else None
        to = self._to(Command.DEL, member, joined, netns)
        for plugin in reversed(network.plugins):
            self._call(network, replace(to, config=_config(network, plugin, member.capabilities, result)), deadline)

    def check(self, member: Member, joined: Joined, deadline: Deadline) -> None:
        """CHECK, first to last, where the network has it.

        :raises CniError: something is not as ADD left it.
        """
        network = joined.network
        if network.disable_check or not network.at_least("0.4.0"):
            return
        to = self._to(Command.CHECK, member, joined, member.netns)
        for plugin in network.plugins:
            config = _config(network, plugin, member.capabilities, joined.result)
            self._call(network, replace(to, config=config), deadline)

    def status(self, network: NetworkList, deadline: Deadline) -> None:
        """STATUS, where the network has it.

        :raises CniError: a plugin says that it cannot take in pods.
        """
        if network.at_least("1.1.0"):
            for plugin in network.plugins:
                config = _config(network, plugin, {}, None)
                self._call(network, Invocation(command=Command.STATUS, config=config, path=self._path), deadline)

    def collect_garbage(self, network: NetworkList, valid: Sequence[Json], deadline: Deadline) -> list[ForgeError]:
        """GC: every plugin is told which attachments there are; what went wrong."""
        failed: list[ForgeError] = []
        # The key was misspelt at first, and plugins know one or the other.
        known = {"cni.dev/valid-attachments": list(valid), "cni.dev/attachments": list(valid)}
        for plugin in network.plugins:
            config = {**_config(network, plugin, {}, None), **known}
            try:
                self._call(network, Invocation(command=Command.GC, config=config, path=self._path), deadline)
            except ForgeError as error:
                failed.append(error)
        return failed

    def _to(self, command: Command, member: Member, joined: Joined, netns: str) -> Invocation:
        return Invocation(
            command=command,
            config={},
            container_id=member.sandbox_id,
            netns=netns,
            ifname=joined.ifname,
            args=member.args,
            # A pod that was attached with plugins from elsewhere is detached with them, if they are still there.
            path=tuple(dict.fromkeys((*self._path, *member.path))),
        )

    def _call(self, network: NetworkList, invocation: Invocation, deadline: Deadline) -> Json:
        config = invocation.config
        try:
            with _at_most(deadline, self._timeout) as own:
                return self._resolve(str(config["type"]), config)(invocation, own)
        except CniError as error:
            raise _told(network, config, invocation.command, error) from error


def _config(network: NetworkList, plugin: Json, capabilities: Mapping[str, Any], result: Json | None) -> Json:
    config = {**plugin, "name": network.name, "cniVersion": network.version}
    asked = runtime_config(plugin, capabilities)
    if asked:
        config["runtimeConfig"] = asked
    if result is not None:
        config["prevResult"] = result
    return config


def _told(network: NetworkList, plugin: Mapping[str, Any], command: Command, error: CniError) -> CniError:
    what = f"network {network.name!r}: plugin {plugin['type']!r} failed to {command}: {error.message}"
    return CniError(error.code, what, error.details)


@contextmanager
def _at_most(deadline: Deadline, seconds: float) -> Iterator[Deadline]:
    """The caller's deadline, or one that is ``seconds`` from now if that is sooner."""
    own = Deadline.after(deadline.remaining(seconds))
    deadline.listen(own.abandon)
    try:
        yield own
    finally:
        deadline.ignore(own.abandon)
