"""What a pod has of its own: a machine with its keeper, a user and a control group on the host."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from engines.base import Resources, SandboxPlan
from engines.microvm import network, refusals, sizing
from engines.microvm.client import Keeper, Keepers
from engines.microvm.cpusets import Cpuset, Cpusets
from engines.microvm.keeper.orders import Launch
from engines.microvm.machines import Machines
from engines.microvm.settings import Settings
from engines.microvm.sizing import Size
from engines.microvm.users import Users
from engines.microvm.vmm.base import Confinement, Machine
from engines.microvm.wire import fields, messages
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, InternalError, NotFound, syscall_error
from forgeone_shim.kernel import cgroups
from forgeone_shim.kernel.cgroups import Mode
from forgeone_shim.kernel.host import Host
from forgeone_shim.limits import groups

_NOTE: Final = "machine.json"
_PARENT_NOTE: Final = "cgroup-made"
_STOP_SECONDS: Final = 30.0
# It takes tens of milliseconds, and seconds where the host is very busy.
_CLONE_SECONDS: Final = 20.0
_ENTROPY: Final = 256
# What a group of version 1 without a limit says is no number that anybody would ask for.
_NO_LIMIT: Final = 1 << 60


class Pod(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What is kept of a pod's machine, in the directory that its keeper has: where it is, and what it was made of."""

    cgroup: str
    user: int
    memory: int
    vcpus: int
    version: str
    facts: dict[str, str]


_DECODER: Final = msgspec.json.Decoder(Pod)


class Sandboxes:
    """Prepares and removes sandboxes; holds nothing but its tools. ``directory`` is the engine's own, below STATE."""

    def __init__(self, host: Host, keepers: Keepers, machines: Machines, directory: Path) -> None:
        self._host, self._keepers, self._machines = host, keepers, machines
        self._pods = directory / "pods"
        self._users = Users(directory / "users", self._pods)
        self._cpusets = Cpusets(host)

    def place(self, sandbox_id: str) -> Path:
        """The directory that a pod's keeper has."""
        return self._pods / sandbox_id

    def keeper(self, sandbox_id: str) -> Keeper:
        """The pod's keeper, whether it lives or not."""
        return Keeper(sandbox_id, str(self.place(sandbox_id)))

    def prepare(self, plan: SandboxPlan, settings: Settings, deadline: Deadline) -> None:
        """Start the pod's machine. What is there already stays; on any error nothing is left.

        :raises InvalidInput: the pod wants what no machine has.
        :raises FailedPrecondition: this host lacks something for machines.
        """
        refusals.pod(plan.spec)
        if self.alive(plan.sandbox_id):
            return
        size = self._size(plan, settings)
        machine, monitor = self._machines.machine(size, deadline), self._machines.monitor()
        # What an earlier try that died half way may have left.
        self._clear(plan.sandbox_id, plan.cgroup)
        with contextlib.ExitStack() as undo:
            undo.callback(self._clear, plan.sandbox_id, plan.cgroup)
            pod = self._begin(plan, machine, deadline)
            user = settings.uid_base + pod.user
            with contextlib.ExitStack() as held, groups.made(self._host, pod.cgroup, Resources(), deadline):
                joined = tuple(
                    mount + self._host.cgroups.occupied(pod.cgroup) for mount in self._host.cgroups.hierarchies
                )
                tap = network.tap(plan.namespaces.network or "")
                held.callback(os.close, tap)
                asked = Launch(
                    sandbox_id=plan.sandbox_id,
                    directory=str(self.place(plan.sandbox_id)),
                    monitor=monitor,
                    machine=machine,
                    who=Confinement(uid=user, gid=user, cgroups=joined),
                    cgroups=joined,
                    seconds=settings.boot_timeout,
                )
                self._launch(asked, tap, deadline)
            undo.pop_all()

    def _launch(self, asked: Launch, tap: int, deadline: Deadline) -> None:
        """From a template if there is one. One that is not as good as a boot, which succeeds where it fails, goes."""
        spoiled = False
        with self._machines.template(asked.machine, deadline) as template:
            if template is not None:
                soon = msgspec.structs.replace(asked, seconds=min(asked.seconds, _CLONE_SECONDS))
                try:
                    self._keepers.launch(soon, deadline, tap=tap, template=template)
                    return
                except (InternalError, DeadlineExceeded):
                    deadline.check("while the machine began")
                    spoiled = True
        self._keepers.launch(asked, deadline, tap=tap)
        if spoiled:
            self._machines.spoiled(asked.machine, deadline)

    def _size(self, plan: SandboxPlan, settings: Settings) -> Size:
        return sizing.size(
            plan.spec.resources,
            default=settings.memory,
            overhead=settings.memory_overhead,
            host_limit=self._limit(plan.cgroup),
            vcpus_max=settings.vcpus_max,
            processors=self._machines.processors(),
        )

    def _limit(self, cgroup: str) -> int:
        """Bytes of memory that the pod's cgroup may have, 0 for no limit."""
        name = "memory.max" if self._host.cgroups.mode is Mode.V2 else "memory.limit_in_bytes"
        directory = self._host.cgroups.directory("memory", cgroup)
        try:
            found = Path(f"{directory}/{name}").read_text().strip()
        except OSError:
            return 0
        return int(found) if found.isdigit() and int(found) < _NO_LIMIT else 0

    def _begin(self, plan: SandboxPlan, machine: Machine, deadline: Deadline) -> Pod:
        """Note what will be made before it is."""
        place = self.place(plan.sandbox_id)
        try:
            place.mkdir(mode=0o700, parents=True)
            pod = Pod(
                cgroup=self._cgroup(plan.sandbox_id, plan.cgroup),
                user=self._users.take(plan.sandbox_id),
                memory=machine.memory,
                vcpus=machine.vcpus,
                version=self._machines.version(deadline),
                facts={**self._machines.boot(deadline).facts(), "accel": machine.accel.value},
            )
            if not cgroups.exists(self._host.cgroups, plan.cgroup):
                (place / _PARENT_NOTE).touch()
            # Whole or not there, whenever the daemon is killed.
            draft = place / f".{_NOTE}"
            draft.write_bytes(msgspec.json.encode(pod))
            draft.replace(place / _NOTE)
        except OSError as error:
            raise syscall_error("write", place, error) from error
        return pod

    def _cgroup(self, sandbox_id: str, parent: str) -> str:
        return self._host.cgroups.container(parent, f"vm-{sandbox_id}")

    def connect(self, plan: SandboxPlan, deadline: Deadline) -> None:
        """Give the machine the pod's address and name, and make it unlike any other from the same template."""
        netns = plan.namespaces.network or ""
        interface = network.connect(netns, routed=plan.restricted)
        told = messages.Setup(
            time=time.time_ns(),
            entropy=os.urandom(_ENTROPY),
            hostname=plan.hostname,
            machine_id=plan.sandbox_id[:32],
            interfaces=() if interface is None else (interface,),
            sysctls=tuple(messages.Setting(name=name, value=value) for name, value in plan.sysctls.items()),
            shared_pid=plan.shares_pid,
        )
        self.keeper(plan.sandbox_id).setup(fields.encode(told), deadline)

    def alive(self, sandbox_id: str) -> bool:
        """Whether the keeper lives, and with it the machine."""
        return self.keeper(sandbox_id).alive()

    def read(self, sandbox_id: str) -> Pod:
        """What the pod's machine was made of.

        :raises NotFound: there is no such pod (any more).
        """
        path = self.place(sandbox_id) / _NOTE
        try:
            return _DECODER.decode(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound("sandbox", sandbox_id) from None
        except OSError as error:
            raise syscall_error("read", path, error) from error
        except (msgspec.DecodeError, UnicodeError) as error:
            raise InternalError(f"{path} is not as known: {error}") from error

    def give_cpus(self, sandbox_id: str, container_id: str, asked: Resources) -> Cpuset:
        """Let the machine run on the host's processors that one of its containers asks for; returns what it had.

        :raises FailedPrecondition: they are not the pod's.
        """
        return self._cpusets.give(self.place(sandbox_id), self.read(sandbox_id).cgroup, container_id, asked)

    def put_back_cpus(self, sandbox_id: str, container_id: str, before: Cpuset | None = None) -> None:
        """Undo :meth:`give_cpus`, for good without a ``before``; a pod that is gone is no error."""
        with contextlib.suppress(NotFound):
            cgroup = self.read(sandbox_id).cgroup
            self._cpusets.put_back(self.place(sandbox_id), cgroup, container_id, before or Cpuset())

    def remove(self, sandbox_id: str, parent: str) -> None:
        """End the machine and let go of all that :meth:`prepare` made; nothing to undo is no error."""
        self._clear(sandbox_id, parent)

    def _clear(self, sandbox_id: str, parent: str) -> None:
        place = self.place(sandbox_id)
        if not place.exists():
            return
        self.keeper(sandbox_id).stop(Deadline.after(_STOP_SECONDS))
        try:
            cgroup = self.read(sandbox_id).cgroup
        except (NotFound, InternalError):
            # Not written yet, or lost with the host's power.
            cgroup = self._cgroup(sandbox_id, parent)
        groups.remove(self._host.cgroups, cgroup)
        self._users.give_back(sandbox_id)
        if (place / _PARENT_NOTE).exists():
            cgroups.remove_empty(self._host.cgroups, parent)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(place)


def facts(pod: Pod) -> Mapping[str, str]:
    """What a fingerprint says of the machine: what it boots, and how large it is."""
    return {**pod.facts, "memory": str(pod.memory), "vcpus": str(pod.vcpus)}
