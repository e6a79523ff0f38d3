"""What a container executes, from what the caller asked and what the image says. Pure."""

from __future__ import annotations

import signal

from engines.base import ContainerSpec, Process, User
from forgeone_shim.errors import InvalidInput
from forgeone_shim.registry.model import ImageConfig

_SIGRTMIN = signal.SIGRTMIN.value


def argv(spec: ContainerSpec, image: ImageConfig) -> tuple[str, ...]:
    """Kubernetes' table: a command replaces the entrypoint and drops the image's cmd, args replace only the cmd."""
    if spec.command:
        return spec.command + spec.args
    final = tuple(image.entrypoint) + (spec.args or tuple(image.cmd))
    if not final:
        raise InvalidInput("config.command", "neither the container nor its image names a command")
    return final


def environment(spec: ContainerSpec, image: ImageConfig) -> tuple[str, ...]:
    """The image's variables, overridden by the container's; a later one of the same name wins, order is kept."""
    merged: dict[str, str] = {}
    for entry in image.env:
        key, _, value = entry.partition("=")
        merged[key] = value
    merged.update(spec.envs)
    return tuple(f"{key}={value}" for key, value in merged.items())


def process(spec: ContainerSpec, image: ImageConfig, user: User) -> Process:
    """The process of a container."""
    return Process(
        args=argv(spec, image),
        env=environment(spec, image),
        cwd=spec.working_dir or image.working_dir or "/",
        user=user,
    )


def signal_number(name: str, *, field: str) -> int:
    """``SIGTERM``, ``TERM``, ``15``, ``SIGRTMIN+3`` or ``RTMAX-1`` as a number."""
    text = name.strip().upper().removeprefix("SIG")
    if not text.isascii():
        raise InvalidInput(field, f"unknown signal {name!r}")
    if text.isdigit():
        number = int(text)
    elif text.startswith("RTMIN") or text.startswith("RTMAX"):
        base = _SIGRTMIN if text.startswith("RTMIN") else signal.SIGRTMAX.value
        offset = text[5:]
        if offset and not (offset[0] in "+-" and offset[1:].isdigit()):
            raise InvalidInput(field, f"unknown signal {name!r}")
        number = base + int(offset or 0)
    else:
        try:
            number = signal.Signals[f"SIG{text}"].value
        except KeyError:
            raise InvalidInput(field, f"unknown signal {name!r}") from None
    if not 1 <= number <= 64:
        raise InvalidInput(field, f"signal {name!r} is out of range")
    return number
