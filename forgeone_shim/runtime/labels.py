"""SELinux labels of pods and their containers: a pod has two categories that no other pod of this host has (MCS).

A container has its pod's label, or what it asks for; without a level of its own it keeps its pod's, so that the
containers of a pod can share files and no others can. Containers that are unconfined on purpose (privileged, or in the
host's PID or IPC namespace, where a confined process could not do what it is there for) run as forgeoned does.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable

from engines.base import ContainerSpec, NamespaceMode, SandboxSpec, SELinux, SELinuxLabels
from forgeone_shim.errors import ResourceExhausted
from forgeone_shim.kernel.selinux import Policy

_FIELD = "linux.security_context.selinux_options"
_NOTHING = SELinux()
_TRIES = 64


class Labeller:
    """``policy`` is the host's, ``None`` where nothing is labelled; ``held`` are the labels of the pods there are."""

    def __init__(self, policy: Policy | None, categories: int, held: Callable[[], Iterable[SELinuxLabels]]) -> None:
        self._policy, self._categories, self._held = policy, categories, held
        self._lock = threading.Lock()
        self._pending: set[str] = set()

    def pod(self, spec: SandboxSpec) -> SELinuxLabels:
        """The labels of a new pod. A level of its own is kept from others until :meth:`settle`.

        :raises InvalidInput: what it asks for is no label.
        :raises ResourceExhausted: every pair of categories is taken.
        """
        if self._policy is None:
            return SELinuxLabels()
        asked = spec.security.selinux or _NOTHING
        level = asked.level or (self._take() if self._policy.process.level else "")
        try:
            return self._labels(self._policy, asked, level)
        except BaseException:
            self.settle(SELinuxLabels(level=level))
            raise

    def container(self, pod: SELinuxLabels, sandbox: SandboxSpec, spec: ContainerSpec) -> SELinuxLabels:
        """The labels of a container in a pod with these."""
        if self._policy is None or not pod.mount:
            return SELinuxLabels()
        security, asked = spec.security, spec.security.selinux or _NOTHING
        given = asked != _NOTHING
        labels = self._labels(self._policy, asked, asked.level or pod.level) if given else pod
        hosts = NamespaceMode.NODE
        shares = hosts in {security.namespaces.pid, security.namespaces.ipc, sandbox.security.namespaces.ipc}
        if security.privileged or (shares and not given):
            return SELinuxLabels(mount=labels.mount, level=labels.level)
        return labels

    def settle(self, labels: SELinuxLabels) -> None:
        """The pod's record is stored (or will never be): its level is known by that from now on."""
        with self._lock:
            self._pending.discard(labels.level)

    @staticmethod
    def _labels(policy: Policy, asked: SELinux, level: str) -> SELinuxLabels:
        process = policy.process.changed(_FIELD, user=asked.user, role=asked.role, type_=asked.type, level=level)
        mount = policy.file.changed(_FIELD, user=asked.user, level=level)
        if asked != _NOTHING:
            policy.check(_FIELD, process)
        return SELinuxLabels(process=str(process), mount=str(mount), level=level)

    def _take(self) -> str:
        """A level that no pod has."""
        with self._lock:
            used = self._pending | {labels.level for labels in self._held()}
            level = next((level for level in self._candidates() if level not in used), "")
            if not level:
                raise ResourceExhausted(
                    f"all pairs of {self._categories} SELinux categories are taken", fix="raise selinux.categories"
                )
            self._pending.add(level)
            return level

    def _candidates(self) -> Iterable[str]:
        # Nearly always the first; when most are taken, all of them in turn.
        for _ in range(_TRIES):
            first, second = secrets.randbelow(self._categories), secrets.randbelow(self._categories)
            if first != second:
                yield _level(first, second)
        for first in range(self._categories):
            for second in range(first + 1, self._categories):
                yield _level(first, second)


def _level(first: int, second: int) -> str:
    return f"s0:c{min(first, second)},c{max(first, second)}"
