"""A container's own guest. Runs in a child of the zygote, its supervisor, and in a child of that."""

from __future__ import annotations

import functools
import gc
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import msgspec

from engines.wasm import jail, messages, modules
from engines.wasm.guest import insight
from engines.wasm.guest.commands import Extension, Ready
from engines.wasm.guest.loading import Loaded
from engines.wasm.guest.plan import GuestPlan
from engines.wasm.guest.running import prepare, run
from engines.wasm.jail import JailPlan, reaper
from engines.wasm.messages import Container, Init
from forgeone_shim.errors import InvalidInput
from forgeone_shim.kernel.mappings import Mapping
from forgeone_shim.shim import titles, wire
from forgeone_shim.shim.channel import Channel, failure
from forgeone_shim.shim.supervision import Failed, Launched, shortened
from forgeone_shim.shim.supervisor import supervise

_INIT_TITLE: Final = "forgeone-init"


@dataclass(frozen=True, slots=True)
class Held:
    """Compiled code, where the zygote has it mapped, and the descriptors that an instance maps its memories from."""

    loaded: Loaded
    fds: tuple[int, ...]
    mappings: tuple[Mapping, ...]


def container(plan: msgspec.Raw, held: Held, code: int, connection: socket.socket) -> NoReturn:
    """Be the supervisor of a container whose first process runs the guest; ``code`` is of no more use."""
    os.close(code)
    asked = messages.decode_plan(plan, Container)
    supervise(
        asked.supervision,
        functools.partial(jail.before_fork, asked.jail),
        functools.partial(_guest, asked, held.loaded),
        connection,
        held.fds,
    )


def init(asked: Init, connection: socket.socket) -> None:
    """Start the first process of a pod, and tell."""
    # It is called as this one is.
    titles.rename(titles.area(), (_INIT_TITLE, asked.sandbox_id))
    try:
        pid = reaper.start(messages.decode_plan(asked.plan, JailPlan))
    except Exception as error:
        kind, message = failure(error)
        answer = messages.encode(Failed(step="start", error=kind, message=shortened(message)))
    else:
        answer = messages.encode(Launched(pid=pid))
    wire.send(connection, answer)


def _guest(asked: Container, loaded: Loaded, channel: Channel) -> int:
    """In the guest's process, the first of the container's PID namespace; returns the exit code."""
    extensions = insight.of_container(asked.insight, loaded)
    jail.enter(asked.jail)
    jail.become(asked.jail)
    # Directories are opened as the user that will read them.
    ready = prepared(asked.guest, loaded, modules.FIELD, extensions)
    channel.catch()
    channel.tether()
    jail.restrict(asked.jail)
    channel.ready()
    channel.await_start()
    gc.enable()
    outcome = run(ready)
    if outcome.reason:
        channel.ending(outcome.reason, outcome.message)
    return outcome.code


def prepared(plan: GuestPlan, loaded: Loaded, field: str, extensions: Sequence[Extension]) -> Ready:
    """The guest, ready to run. A module that cannot be is InvalidInput of ``field``."""
    try:
        return prepare(plan, loaded, extensions)
    except InvalidInput as error:
        raise InvalidInput(field, f"{error.field}: {error.reason}", fix=error.fix) from error
