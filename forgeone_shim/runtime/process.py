"""What a container executes, from what the caller asked and what the image says. Pure."""

from __future__ import annotations

import posixpath
import signal
from collections.abc import Sequence

from engines.base import ContainerSpec, Process, User
from forgeone_shim.errors import InvalidInput
from forgeone_shim.registry.model import ImageConfig

_SIGRTMIN = signal.SIGRTMIN.value


def argv(spec: ContainerSpec, image: ImageConfig, module: str = "") -> tuple[str, ...]:
    """Kubernetes' table: a command replaces the entrypoint and drops the image's cmd, args replace only the cmd.

    An image that is a ``module`` need not name it: where nothing does, the file's name is its name for itself.
    """
    if spec.command:
        return spec.command + spec.args
    if module and not image.entrypoint and (spec.args or not image.cmd):
        return posixpath.basename(module), *spec.args
    final = tuple(image.entrypoint) + (spec.args or tuple(image.cmd))
    if not final:
        raise InvalidInput("config.command", "neither the container nor its image names a command")
    return final


def environment(spec: ContainerSpec, image: ImageConfig, defaults: Sequence[str] = ()) -> tuple[str, ...]:
    """The image's variables, overridden by the container's; a later one of the same name wins, order is kept.

    ``defaults`` are those of the pod's handler, which both override.
    """
    merged: dict[str, str] = {}
    for entry in (*defaults, *image.env):
        key, _, value = entry.partition("=")
        merged[key] = value
    merged.update(spec.envs)
    return tuple(f"{key}={value}" for key, value in merged.items())


def process(
    spec: ContainerSpec, image: ImageConfig, user: User, module: str = "", defaults: Sequence[str] = ()
) -> Process:
    """The process of a container."""
    return Process(
        args=argv(spec, image, module),
        env=environment(spec, image, defaults),
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
