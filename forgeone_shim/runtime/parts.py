"""What the verbs work with, wired once in :mod:`forgeone_shim.runtime.runtime`."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from engines.base import Engine, Handle
from forgeone_shim.config.model import Config
from forgeone_shim.devices.blockio import Classes
from forgeone_shim.fs.layers import LayerStore
from forgeone_shim.fs.rootfs import RootfsStore
from forgeone_shim.kernel.cgroups import CgroupHost
from forgeone_shim.lifecycle.machine import Lifecycle
from forgeone_shim.network.network import Network
from forgeone_shim.runtime.around import Around
from forgeone_shim.runtime.chronicle import Chronicle
from forgeone_shim.runtime.guard import Guard
from forgeone_shim.runtime.handlers import Handlers
from forgeone_shim.runtime.identity import Identity
from forgeone_shim.runtime.inforce import InForce
from forgeone_shim.runtime.janitor import Janitor
from forgeone_shim.runtime.labels import Labeller
from forgeone_shim.runtime.paths import Paths
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord
from forgeone_shim.runtime.table import Table
from forgeone_shim.scheduler.scheduler import Scheduler
from forgeone_shim.shim.namespaces import NamespaceServer
from forgeone_shim.state.store import StateStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Shared by the sandbox and container verbs; everything in it is thread-safe."""

    config: Config
    paths: Paths
    store: StateStore
    lifecycle: Lifecycle
    janitor: Janitor
    pool: ThreadPoolExecutor
    network: Network
    layers: LayerStore
    rootfs: RootfsStore
    engines: Mapping[str, Engine]
    handlers: Handlers
    scheduler: Scheduler
    cgroups: CgroupHost
    shim: NamespaceServer
    sandboxes: Table[SandboxRecord]
    containers: Table[ContainerRecord]
    blockio: Classes
    labeller: Labeller
    identity: Identity
    guard: Guard
    policies: InForce
    around: Around
    chronicle: Chronicle

    def handle(self, record: ContainerRecord) -> Handle:
        """How the engine finds a container."""
        return self.paths.handle(record.id, record.sandbox_id, record.cgroup)
