"""What the guard is told of pods and containers besides what is asked about."""

from __future__ import annotations

import os
import shutil

from forgeone_shim.config.model import Config
from forgeone_shim.contract.facts import RuntimeFacts
from forgeone_shim.kernel import capabilities
from forgeone_shim.kernel.host import has_apparmor
from forgeone_shim.lifecycle.machine import State
from forgeone_shim.runtime import facts
from forgeone_shim.runtime.identity import Identity
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord
from forgeone_shim.runtime.table import Table


class Around:
    """The records there are, and the node's own settings. Thread-safe."""

    def __init__(
        self,
        sandboxes: Table[SandboxRecord],
        containers: Table[ContainerRecord],
        identity: Identity,
        config: Config,
    ) -> None:
        self._sandboxes, self._containers, self._identity = sandboxes, containers, identity
        self._apparmor = has_apparmor() and shutil.which("apparmor_parser") is not None
        self.follow(config)

    def follow(self, config: Config) -> None:
        """From now on these are the settings."""
        given = {name.upper().removeprefix("CAP_") for name in config.native.default_capabilities}
        self.host = facts.Host(
            capabilities=frozenset(given or (one.removeprefix("CAP_") for one in capabilities.DEFAULT)),
            apparmor=self._apparmor,
            kubelet=os.path.realpath(config.contract.kubelet_dir),
        )

    def pod_of(self, record: ContainerRecord) -> SandboxRecord:
        """The pod of a container; NotFound where it is gone."""
        return self._sandboxes.find(record.sandbox_id).record

    def engines_of(self, sandbox_id: str) -> tuple[str, ...]:
        """The engines of the containers of a pod that have not ended."""
        records = (entry.record for entry in self._containers.all())
        return tuple(
            one.engine for one in records if one.sandbox_id == sandbox_id and one.state is not State.TERMINATED
        )

    def runtime(self, record: ContainerRecord) -> RuntimeFacts:
        """How it runs."""
        return self._identity.facts(record)

    def changed(self, record: ContainerRecord) -> str:
        """What is not as it was when the container was created; empty: nothing."""
        return self._identity.changed(record)
