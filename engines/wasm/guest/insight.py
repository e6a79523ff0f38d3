"""What a guest gets besides WASI, opened where the host's paths still lead somewhere: before its jail is entered."""

from __future__ import annotations

import os

from engines.wasm import card as cards
from engines.wasm.card import Card, View
from engines.wasm.guest import abi
from engines.wasm.guest.abi import Interface
from engines.wasm.guest.commands import Extension
from engines.wasm.guest.loading import Loaded, LoadedModule
from engines.wasm.guest.trace import COMPONENT, Tracer, untraceable
from engines.wasm.messages import Insight
from engines.wasm.tracing import ring
from forgeone_shim.errors import syscall_error


def of_container(asked: Insight, loaded: Loaded) -> list[Extension]:
    """For a container's own guest; makes the files that it needs in the bundle.

    :raises FailedPrecondition: it is to be traced and cannot be.
    """
    # In this order: what is traced is what the others define.
    return [*_interface(asked, loaded, "created"), *_tracer(asked, loaded)]


def of_execution(asked: Insight, loaded: Loaded) -> list[Extension]:
    """For one more guest in a running container, which is not traced."""
    return [*_interface(asked, loaded, "running")]


def _interface(asked: Insight, loaded: Loaded, state: str) -> list[Extension]:
    if not abi.wanted(loaded):
        return []
    return [Interface(asked.identity, _view(f"{asked.bundle}/{cards.NAME}", Card(state, asked.limits)))]


def _view(path: str, card: Card) -> View:
    """The container's own guest may have had no use for one, and two others may want one at once."""
    found = cards.see(path)
    if found is not None:
        return found
    try:
        return cards.create(path, card)
    except FileExistsError:
        return _view(path, card)


def _tracer(asked: Insight, loaded: Loaded) -> list[Extension]:
    if not asked.trace:
        return []
    if not isinstance(loaded, LoadedModule):
        raise untraceable(COMPONENT)
    path = f"{asked.bundle}/{ring.NAME}"
    try:
        ring.create(path)
        if not loaded.module.imports:
            return []
        return [Tracer(os.open(path, os.O_RDWR | os.O_CLOEXEC))]
    except OSError as error:
        raise syscall_error("write", path, error) from error
