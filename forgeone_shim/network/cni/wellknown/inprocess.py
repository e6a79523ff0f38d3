"""What every plugin done in this process has in common with a program: checked arguments, errors as CNI has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError, Kind
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation, Json
from forgeone_shim.network.cni.wellknown.conf import NAME, Unsupported, link_name
from forgeone_shim.network.cni.wellknown.result import INTERNAL, INVALID_CONFIG

T = TypeVar("T")

UNKNOWN_CONTAINER: Final = 3
INVALID_VARIABLES: Final = 4
# GC and STATUS are of a network, not of a container.
_OF_A_CONTAINER: Final = (Command.ADD, Command.DEL, Command.CHECK)


@dataclass(frozen=True, slots=True)
class InProcess(Generic[T]):
    """A plugin: ``read`` a configuration (:class:`Unsupported` for one it does not do), ``run`` an invocation."""

    read: Callable[[Mapping[str, Any]], T]
    run: Callable[[T, Invocation, Deadline], Json]

    def __call__(self, invocation: Invocation, deadline: Deadline) -> Json:
        """See :class:`~forgeone_shim.network.cni.plugin.Plugin`.

        :raises DeadlineExceeded: what was done was undone.
        """
        _check_arguments(invocation)
        try:
            return self.run(self.read(invocation.config), invocation, deadline)
        except CniError:
            raise
        except Unsupported as error:
            raise CniError(INVALID_CONFIG, "this configuration is not done in-process", str(error)) from error
        except OSError as error:
            what = error.strerror or str(error)
            raise CniError(INTERNAL, f"{error.filename}: {what}" if error.filename else what) from error
        except ForgeError as error:
            if error.kind is Kind.DEADLINE:
                raise
            raise CniError(INTERNAL, str(error)) from error


def _check_arguments(invocation: Invocation) -> None:
    """As the programs do it; the first letter of a container's id and of an interface cannot lead out of a folder."""
    if invocation.command not in _OF_A_CONTAINER:
        return
    if not invocation.container_id:
        raise CniError(UNKNOWN_CONTAINER, "missing containerID")
    if not NAME.fullmatch(invocation.container_id):
        raise CniError(INVALID_VARIABLES, "invalid characters in containerID", invocation.container_id)
    try:
        link_name(invocation.ifname)
    except Unsupported as error:
        raise CniError(INVALID_VARIABLES, "not the name of an interface", invocation.ifname) from error
    if not invocation.netns and invocation.command is not Command.DEL:
        raise CniError(INVALID_VARIABLES, "required env variables [CNI_NETNS] missing")
