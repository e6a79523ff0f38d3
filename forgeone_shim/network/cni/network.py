"""The networks that CNI configurations describe: pods are attached to those of a folder, and detached whatever happens.

What is going to be done is stored before the first ADD, with the configuration as it was then, so that DEL can be
called until it succeeds: by a retry in this process, or by the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Final

import structlog

from forgeone_shim.config.model import CniConfig
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import FailedPrecondition, ForgeError, InternalError, InvalidInput
from forgeone_shim.network import podfiles
from forgeone_shim.network.cni import execute, results
from forgeone_shim.network.cni.capabilities import plan_args, plan_capabilities
from forgeone_shim.network.cni.config import Folder, NetworkList
from forgeone_shim.network.cni.folders import Folders
from forgeone_shim.network.cni.members import Joined, Member, Members, Stage
from forgeone_shim.network.cni.plugin import Json
from forgeone_shim.network.cni.plugins import Find, Plugins
from forgeone_shim.network.facts import Attachment, PodFacts
from forgeone_shim.network.turns import Gate, Turns
from forgeone_shim.state.store import StateStore

Retry = Callable[[str, Callable[[], None]], None]

NOT_READY: Final = "NetworkPluginNotReady"
# A kubelet asks every five seconds; others may ask at any rate.
_STATUS_FRESH, _STATUS_PATIENCE = 2.0, 5.0


class CniNetwork:
    """Thread-safe.

    :param find: the plugin of a type and a configuration that runs in this process, if there is one.
    :param retry: runs a named job until it does not raise.
    """

    def __init__(self, config: CniConfig, store: StateStore, find: Find, retry: Retry) -> None:
        self._config, self._find, self._retry = config, find, retry
        self._plugins = Plugins(config, find)
        self._members = Members(store)
        self._turns, self._gate = Turns(), Gate()
        self._folders = Folders(config.max_conf_num, self._folder_changed)
        self._guard = Lock()
        self._retried: set[str] = set()
        self._ill: dict[str, str] = {}
        self._asking = Lock()
        self._said: tuple[float, Folder, str] | None = None
        self._pod_ranges: tuple[str, ...] = ()
        # Of what nobody waits for: it ends with this object.
        self._life = Deadline()
        self._log = structlog.get_logger("cni")
        cut_off = {one.sandbox_id for one in self._members.all() if one.stage is not Stage.ATTACHED}
        if cut_off:
            execute.end_orphans(cut_off)

    def reconfigure(self, config: CniConfig, conf_dirs: set[str]) -> None:
        """Another configuration counts from now on; ``conf_dirs`` are the folders in use."""
        self._config, self._plugins, self._said = config, Plugins(config, self._find), None
        self._folders.reset(config.max_conf_num, conf_dirs)

    def use_ranges(self, ranges: tuple[str, ...]) -> None:
        """The node's ranges of pod addresses, for plugins that can be told."""
        self._pod_ranges = ranges

    def folder(self, conf_dir: str = "") -> Folder:
        """What counts for new pods in a folder (empty: the node's)."""
        return self._folders.look(conf_dir or self._config.conf_dir)

    def has(self, sandbox_id: str) -> bool:
        """Whether the pod is, or was to be, on a CNI network."""
        return self._members.get(sandbox_id) is not None

    def attach(
        self, pod: PodFacts, pinned: Callable[[], object] = lambda: None, deadline: Deadline = NEVER
    ) -> Attachment:
        """Put a pod on the networks of its folder. A pod that is attached already keeps what it has.

        ``pinned`` returns once the namespace is there, or raises. On failure everything is undone, if need be later.

        :raises InvalidInput: the pod asks for what cannot be.
        :raises FailedPrecondition: there is no configuration that can be used.
        :raises CniError: a plugin refused or failed.
        :raises DeadlineExceeded: the deadline passed first.
        """
        with self._turns.hold(pod.sandbox_id), _os_errors(f"attach sandbox {pod.sandbox_id}"):
            present = self._members.get(pod.sandbox_id)
            if present is not None:
                if present.stage is Stage.ATTACHED and present.netns == pod.netns:
                    return _attachment(present)
                self._delete(present)
            member = self._members.save(self._plan(pod, deadline))
            inside = ExitStack()
            try:
                pinned()
                inside.enter_context(self._gate.together(deadline))
            except BaseException:
                # No plugin has been called yet.
                self._members.forget(pod.sandbox_id)
                raise
            with ExitStack() as undo:
                undo.callback(self._abandon, pod.sandbox_id)
                with inside:
                    member = self._add(member, deadline)
                undo.pop_all()
            return _attachment(member)

    def detach(self, sandbox_id: str) -> None:
        """Take a pod off its networks. One that is on none is no error, nor is a namespace that is gone.

        :raises CniError: a plugin failed; it is tried again until it succeeds, and by each further call.
        """
        with self._turns.hold(sandbox_id), _os_errors(f"detach sandbox {sandbox_id}"):
            member = self._members.get(sandbox_id)
            if member is not None:
                try:
                    self._delete(member)
                except BaseException:
                    self._delete_later(sandbox_id)
                    raise

    def attachment(self, sandbox_id: str) -> Attachment | None:
        """What a pod has, ``None`` unless it is attached."""
        member = self._members.get(sandbox_id)
        return _attachment(member) if member is not None and member.stage is Stage.ATTACHED else None

    def details(self, sandbox_id: str) -> Json:
        """For people: what plugins answered, by interface, and what a CHECK found wrong."""
        member = self._members.get(sandbox_id)
        if member is None:
            return {}
        ill = self._ill.get(sandbox_id)
        return {
            "cniResult": {one.ifname: {"network": one.network.name, **(one.result or {})} for one in member.joined},
            **({"cniCheck": ill} if ill else {}),
        }

    def reconcile(self, known: Callable[[], set[str]]) -> tuple[str, ...]:
        """Finish what was cut off: every pod that is leaving, or is unknown, is detached; the ids that are left to do.

        ``known`` is asked after the stored pods were read.
        """
        members = self._members.all()
        ids = known()
        doomed = [one for one in members if one.stage is Stage.LEAVING or one.sandbox_id not in ids]
        return tuple(one.sandbox_id for one in doomed if not self._try_delete(one.sandbox_id))

    def check(self) -> None:
        """CHECK every attached pod and tell what is not as it was; nothing is changed."""
        for member in self._members.all():
            with self._turns.hold(member.sandbox_id):
                now = self._members.get(member.sandbox_id)
                if now is None or now.stage is not Stage.ATTACHED:
                    continue
                try:
                    for joined in now.joined:
                        self._plugins.chain.check(now, joined, self._life)
                except Exception as error:
                    if self._life.passed:
                        return
                    self._ill[member.sandbox_id] = str(error)
                    self._log.warning("a pod's network is damaged", sandbox=member.sandbox_id, error=str(error))
                else:
                    self._ill.pop(member.sandbox_id, None)

    def collect_garbage(self) -> None:
        """GC on every network in use: what belongs to none of the stored pods is freed by the plugins themselves."""
        for path in self._folders.paths():
            for network in self._folders.look(path).networks:
                for error in self._collect_garbage(network):
                    self._log.warning("garbage not collected", network=network.name, error=str(error))

    def _collect_garbage(self, network: NetworkList) -> list[ForgeError]:
        try:
            settled = self._plugins.settle(network, self._life)
        except ForgeError as error:
            return [error]
        if settled.disable_gc or not settled.at_least("1.1.0"):
            return []
        # Whoever is not in the list yet must not be added meanwhile.
        with self._gate.alone():
            valid = [
                {"containerID": member.sandbox_id, "ifname": joined.ifname}
                for member in self._members.all()
                for joined in member.joined
                if joined.network.name == network.name
            ]
            return self._plugins.chain.collect_garbage(settled, valid, self._life)

    def status(self) -> tuple[bool, str, str]:
        """``(ready, reason, message)`` as CRI's NetworkReady wants it."""
        folder = self.folder()
        problem = folder.problem
        if not problem and not folder.networks:
            problem = f"no network configuration in {self._config.conf_dir}"
        problem = problem or self._plugins.missing(folder) or self._unwell(folder)
        return (False, NOT_READY, problem) if problem else (True, "", "")

    def in_use(self) -> bool:
        """Whether any pod is, or was to be, on a network."""
        return bool(self._members.all())

    def close(self) -> None:
        """Stop watching folders, and whatever plugins are doing that no pod's start is waiting for."""
        self._life.abandon()
        self._folders.close()

    def _plan(self, pod: PodFacts, deadline: Deadline) -> Member:
        folder = self.folder(pod.conf_dir)
        if folder.problem:
            raise FailedPrecondition(f"the network configuration cannot be used: {folder.problem}")
        if not folder.networks:
            raise FailedPrecondition(f"no network configuration in {pod.conf_dir or self._config.conf_dir}")
        networks = [self._plugins.settle(network, deadline) for network in folder.networks]
        return Member(
            sandbox_id=pod.sandbox_id,
            netns=pod.netns,
            args=plan_args(pod),
            capabilities=plan_capabilities(pod, self._pod_ranges),
            path=self._config.bin_dirs,
            joined=tuple(Joined(network, f"eth{index}") for index, network in enumerate(networks)),
        )

    def _add(self, member: Member, deadline: Deadline) -> Member:
        chain = self._plugins.chain
        for index, joined in enumerate(member.joined):
            before = member

            def progress(result: Json, before: Member = before, index: int = index) -> None:
                # With it a DEL after a crash undoes what needs the result to be found again.
                self._members.save(before.with_result(index, result))

            member = before.with_result(index, chain.add(before, joined, deadline, progress))
            if index + 1 < len(member.joined):
                self._members.save(member)
        first = member.joined[0]
        got = results.read(first.result or {}, first.ifname)
        if not got.ips:
            raise InternalError(f"network {first.network.name!r} gave {first.ifname} no address")
        try:
            podfiles.render_resolv_conf(got.dns, "")
        except InvalidInput as error:
            raise InternalError(f"network {first.network.name!r} gave name servers nobody can use: {error}") from None
        ips = results.prefer(got.ips, self._config.ip_preference)
        return self._members.save(replace(member, stage=Stage.ATTACHED, ips=ips, mac=got.mac, dns=got.dns))

    def _delete(self, member: Member) -> None:
        """DEL all of it, in the reverse order, here and now."""
        if member.stage is not Stage.LEAVING:
            member = self._members.save(replace(member, stage=Stage.LEAVING))
        netns = member.netns if _is_namespace(member.netns) else ""
        chain = self._plugins.chain
        with self._gate.together(self._life):
            for joined in reversed(member.joined):
                chain.delete(member, joined, netns, self._life)
        self._members.forget(member.sandbox_id)
        self._ill.pop(member.sandbox_id, None)

    def _abandon(self, sandbox_id: str) -> None:
        """Undo a failed attach; what cannot be undone now is tried again."""
        member = self._members.get(sandbox_id)
        try:
            if member is not None:
                self._delete(member)
        except Exception as error:
            self._log.warning("network not undone yet", sandbox=sandbox_id, error=str(error))
            self._delete_later(sandbox_id)

    def _try_delete(self, sandbox_id: str) -> bool:
        try:
            with self._turns.hold(sandbox_id):
                member = self._members.get(sandbox_id)
                if member is not None:
                    self._delete(member)
        except Exception as error:
            self._log.warning("network not detached yet", sandbox=sandbox_id, error=str(error))
            return False
        return True

    def _delete_later(self, sandbox_id: str) -> None:
        with self._guard:
            if sandbox_id in self._retried:
                return
            self._retried.add(sandbox_id)

        def job() -> None:
            with self._turns.hold(sandbox_id):
                member = self._members.get(sandbox_id)
                if member is not None and member.stage is Stage.LEAVING:
                    self._delete(member)
                # Within the turn: whoever fails to delete after this asks for a job of its own.
                with self._guard:
                    self._retried.discard(sandbox_id)

        self._retry(f"detach sandbox {sandbox_id[:13]} from its networks", job)

    def _folder_changed(self, path: str) -> None:
        self._plugins.forget_versions()
        self._said = None
        if any(network.at_least("1.1.0") or network.candidates for network in self._folders.look(path).networks):
            self._retry(f"collect garbage of the networks in {path}", self.collect_garbage)

    def _unwell(self, folder: Folder) -> str:
        """What STATUS says is wrong; asked once for all that ask at about the same time."""
        with self._asking:
            said = self._said
            if said is not None and said[1] is folder and time.monotonic() - said[0] < _STATUS_FRESH:
                return said[2]
            problem = ""
            try:
                for network in folder.networks:
                    settled = self._plugins.settle(network, Deadline.after(_STATUS_PATIENCE))
                    self._plugins.chain.status(settled, Deadline.after(_STATUS_PATIENCE))
            except (ForgeError, OSError) as error:
                problem = str(error)
            self._said = time.monotonic(), folder, problem
            return problem


def _attachment(member: Member) -> Attachment:
    return Attachment(member.ips, member.joined[0].ifname, member.mac, member.dns)


def _is_namespace(path: str) -> bool:
    """Whether a namespace is pinned there: a pin that was taken away is an empty file, or none."""
    try:
        return Path(path).stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except OSError:
        return False


@contextmanager
def _os_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InternalError(f"{what}: {error.strerror or error}") from error
