"""The templates that this daemon has at hand, and the making of those it has not."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from engines.microvm.templates import sealed
from engines.microvm.templates.keys import Key
from engines.microvm.templates.store import Store
from engines.microvm.vmm.base import Machine, Template
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import ForgeError, InternalError, syscall_error

# Nodes have pods of a few sizes.
_HELD_MAX: Final = 4
_BUILD_SECONDS: Final = 180.0
# What went wrong is not tried again with each pod.
_AGAIN_SECONDS: Final = 300.0

Build = Callable[[Machine, int, int, Deadline], None]
"""Boots the machine, as nobody's, with its memory in the first descriptor, and saves its devices into the second."""
Report = Callable[[str, str], None]
"""Told the name of a template, and what went wrong with it."""


class Templates:
    """Thread-safe. ``build`` and ``report`` are called in a thread of its own, one template after the other.

    ``most`` is how many bytes of the host's memory they may take altogether: each takes what its machine has.
    """

    def __init__(self, directory: Path, build: Build, report: Report, *, most: int) -> None:
        self._store, self._most = Store(directory), most
        self._build, self._report = build, report
        self._lock = threading.Lock()
        self._held: OrderedDict[str, Template] = OrderedDict()
        self._looked: set[str] = set()
        self._building: dict[str, tuple[threading.Thread, Deadline]] = {}
        self._failed: dict[str, float] = {}
        self._dropped: dict[str, float] = {}
        self._generation = ""
        self._closed = False

    @contextmanager
    def take(self, machine: Machine, key: Key) -> Iterator[Template | None]:
        """A template for the machine; its descriptors are good within the block.

        ``None`` where there is none: the machine boots by itself, and one is begun to be built, unless it would be too
        large, or another one is being built.
        """
        if machine.memory > self._most:
            yield None
            return
        with ExitStack() as stack:
            with self._lock:
                self._renew(key)
                found = self._find(key)
                if found is not None:
                    found = Template(memory=os.dup(found.memory), state=os.dup(found.state))
                    stack.callback(os.close, found.memory)
                    stack.callback(os.close, found.state)
                else:
                    self._begin(machine, key)
            yield found

    def drop(self, key: Key) -> None:
        """Have no such template any more, here or on disk: a machine could not begin from it.

        It is made anew once; if that is no good either, not before some minutes.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._dropped.get(key.name, -_AGAIN_SECONDS) < _AGAIN_SECONDS:
                self._failed[key.name] = now
            self._dropped[key.name] = now
            held = self._held.pop(key.name, None)
            if held is not None:
                _close(held)
            self._looked.add(key.name)
            self._store.remove(key)

    def wait(self, key: Key, seconds: float) -> bool:
        """Whether a template that is being built is there within that time."""
        with self._lock:
            building = self._building.get(key.name)
        if building is not None:
            building[0].join(seconds)
        with self._lock:
            return key.name in self._held

    def close(self) -> None:
        """Let go of all; what is being built is given up."""
        with self._lock:
            self._closed = True
            building = list(self._building.values())
        for thread, deadline in building:
            deadline.abandon()
            thread.join()
        with self._lock:
            while self._held:
                _close(self._held.popitem()[1])

    def _renew(self, key: Key) -> None:
        """What was saved of machines that there are no more of is of no use."""
        if key.generation == self._generation:
            return
        self._generation = key.generation
        for name in [name for name in self._held if name.partition("-")[0] != key.generation]:
            _close(self._held.pop(name))
        with contextlib.suppress(OSError):
            self._store.retain(key.generation)

    def _find(self, key: Key) -> Template | None:
        held = self._held.get(key.name)
        if held is None and key.name not in self._looked:
            self._looked.add(key.name)
            held = self._store.load(key)
            if held is not None:
                self._hold(key, held)
        if held is not None:
            self._held.move_to_end(key.name)
        return held

    def _hold(self, key: Key, template: Template) -> None:
        self._held[key.name] = template
        while len(self._held) > _HELD_MAX or sum(map(_size, self._held.values())) > self._most:
            name, other = self._held.popitem(last=False)
            _close(other)
            # Its copy on disk is looked for again.
            self._looked.discard(name)

    def _begin(self, machine: Machine, key: Key) -> None:
        since = self._failed.get(key.name)
        if self._closed or self._building:
            return
        if since is not None and time.monotonic() - since < _AGAIN_SECONDS:
            return
        deadline = Deadline.after(_BUILD_SECONDS)
        thread = threading.Thread(target=self._make, args=(machine, key, deadline), name="template", daemon=True)
        self._building[key.name] = thread, deadline
        thread.start()

    def _make(self, machine: Machine, key: Key, deadline: Deadline) -> None:
        """In a thread."""
        wrong = ""
        try:
            self._keep(key, save(machine, lambda memory, state: self._build(machine, memory, state, deadline)))
        except ForgeError as error:
            wrong = str(error)
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        with self._lock:
            del self._building[key.name]
            if wrong and key.name not in self._held:
                self._failed[key.name] = time.monotonic()
            told = wrong and not self._closed
        if told:
            self._report(key.name, wrong)

    def _keep(self, key: Key, made: Template) -> None:
        """Have it at hand at once, and on disk as soon as may be."""
        with ExitStack() as stack:
            with self._lock:
                if self._closed or key.generation != self._generation:
                    _close(made)
                    return
                self._failed.pop(key.name, None)
                self._hold(key, made)
                # Others may let go of it from now on.
                copy = Template(memory=os.dup(made.memory), state=os.dup(made.state))
                stack.callback(_close, copy)
            self._store.save(key, copy)


def save(machine: Machine, build: Callable[[int, int], None]) -> Template:
    """Two new files, what ``build`` puts into them, and a seal. On any error nothing is left of them."""
    with ExitStack() as undo:
        memory = sealed.make("guest-memory", machine.memory)
        undo.callback(os.close, memory)
        state = sealed.make("guest-state", 0)
        undo.callback(os.close, state)
        build(memory, state)
        if not os.fstat(state).st_size:
            raise InternalError("a machine was saved, and nothing of it was written")
        with contextlib.suppress(OSError):
            # It is as good without.
            sealed.thin(memory)
        try:
            sealed.fill(memory)
        except OSError as error:
            raise syscall_error("fallocate", "the memory of a template", error) from error
        sealed.seal(memory)
        sealed.seal(state)
        undo.pop_all()
    return Template(memory=memory, state=state)


def _size(template: Template) -> int:
    return os.fstat(template.memory).st_size


def _close(template: Template) -> None:
    os.close(template.memory)
    os.close(template.state)
