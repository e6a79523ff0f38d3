"""The line between CNI's runtime and its plugins: what a plugin is told, and what it answers.

A plugin is a program, or the same thing done in this process; both are called through :class:`Plugin`. The words are
those of the CNI specification (https://www.cni.dev/docs/spec/), versions 0.3.0 to 1.1.0. Results of 0.3.0 and
0.3.1, which network add-ons still ask for, look like those of 0.4.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError

VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Oldest first."""
Json = dict[str, Any]


class Command(StrEnum):
    """``CNI_COMMAND``."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One call of one plugin.

    ``config`` is what a program would read from its standard input: the plugin's own configuration with ``cniVersion``,
    ``name``, ``runtimeConfig`` and ``prevResult`` filled in. ``netns`` is empty where the namespace is gone (DEL) or
    has no meaning (GC, STATUS); so are ``container_id`` and ``ifname`` for the latter. ``path`` are the folders to find
    delegated plugins (IPAM) in.
    """

    command: Command
    config: Mapping[str, Any]
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: Mapping[str, str] = field(default_factory=dict)
    path: tuple[str, ...] = ()


class Plugin(Protocol):
    """Does what an invocation says."""

    def __call__(self, invocation: Invocation, deadline: Deadline) -> Json:
        """The result of ADD in the configuration's ``cniVersion``; empty for every other command.

        :raises CniError: the plugin refused or failed.
        """


class CniError(ForgeError):
    """What a plugin answered: an error code of the specification, a message, and details."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        self.code, self.message, self.details = code, message, details
        super().__init__(message + (f" ({details})" if details else ""))
