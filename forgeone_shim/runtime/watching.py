"""What containers do: watched from before their first instruction, compared with what is usual; what drift leads to.

A container whose contract asks for it (``behaviour.watched``) does not start on a node that cannot watch it.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from forgeone_shim.contract.model import Behaviour
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.dna.behaviour import drift as drifts
from forgeone_shim.dna.behaviour import names
from forgeone_shim.dna.behaviour.baseline import Baseline
from forgeone_shim.dna.behaviour.drift import Drift
from forgeone_shim.dna.behaviour.library import Library
from forgeone_shim.dna.behaviour.profile import Profile, Seen, profile
from forgeone_shim.dna.behaviour.recorder import Group, Recorder, group_at
from forgeone_shim.dna.score import UNWATCHED, Watched
from forgeone_shim.errors import FailedPrecondition, ForgeError, NotFound, syscall_error
from forgeone_shim.kernel import cgroups
from forgeone_shim.kernel.cgroups import CgroupHost, Mode
from forgeone_shim.lifecycle.machine import Event, State, Subject, Transition
from forgeone_shim.runtime.endings import Endings
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.pauses import Pauses
from forgeone_shim.runtime.records import ContainerRecord
from forgeone_shim.runtime.table import Entry

_KIND: Final = "watched"
# A guest counts its calls by writing to memory: nothing tells of that.
_LOOK_EVERY: Final = 1.0
_PAUSE_SECONDS: Final = 30.0
_WASM: Final = "wasm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A watched container, as it is stored.

    :param group: the id of its control group, 0 where only its guest's calls are counted; ``level`` is its depth.
    :param whole: whether it was watched from its first instruction on.
    :param executed: whether a command was executed in it.
    :param baseline: the digest of what it is compared with, empty: nothing.
    :param drift: calls that the baseline does not have, in the order in which they were found; of these, something was
        done about the first ``acted``.
    :param profile: all that it did, once it has ended.
    """

    container: str
    image: str
    engine: str
    group: int
    level: int
    whole: bool = True
    executed: bool = False
    baseline: str = ""
    drift: tuple[str, ...] = ()
    acted: int = 0
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A watched container, what it did, what it is compared with and how that differs; without a baseline ``None``."""

    observed: Observed
    profile: Profile
    baseline: Baseline | None
    drift: Drift | None


class Acts(Protocol):
    """What can be done to a container that drifted."""

    def stop(self, entry: Entry[ContainerRecord], why: str) -> None:
        """Kill it; returns when it has ended."""

    def pause(self, entry: Entry[ContainerRecord]) -> None:
        """Stop its processes where they are. FailedPrecondition: it does not run, or this host cannot do that."""


class Answers:
    """:class:`Acts` by the verbs."""

    def __init__(self, endings: Endings, pauses: Pauses) -> None:
        self._endings, self._pauses = endings, pauses

    def stop(self, entry: Entry[ContainerRecord], why: str) -> None:
        """It has no grace period: whoever has taken it over would have one too."""
        with entry.state:
            if entry.record.state not in (State.CREATED, State.TERMINATED):
                entry.change(denied=why)
        self._endings.stop(entry, 0, NEVER)

    def pause(self, entry: Entry[ContainerRecord]) -> None:
        """FailedPrecondition: it does not run, or this host cannot freeze it."""
        self._pauses.pause(entry.record.id, Deadline.after(_PAUSE_SECONDS))


class Watching:
    """Thread-safe. Nothing is loaded, and no thread runs, while nobody is watched."""

    def __init__(self, parts: Parts, acts: Acts, recorder: Recorder | None = None) -> None:
        self._p, self._acts = parts, acts
        self.library = Library(parts.store)
        self._log = structlog.get_logger("behaviour")
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._finishing = threading.Lock()
        self._observed = dict(parts.store.items(_KIND, Observed))
        self._lost: set[str] = set()
        self._known: dict[str, Baseline] = {}
        self._ordered: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._closing = threading.Event()
        self._ticking = False
        self._recorder = recorder or Recorder(parts.paths.behaviour, self._news, parts.pool.submit)

    # -- a container's life

    def prepare(self, record: ContainerRecord) -> None:
        """Before a container is made: whether it can be watched, and compared with what its contract names.

        :raises FailedPrecondition: it is to be, and cannot; why.
        """
        behaviour = record.contract.behaviour
        if not behaviour.watched:
            return
        self._chosen(record, behaviour)
        try:
            _hierarchy(self._p.cgroups)
            self._recorder.check()
        except FailedPrecondition:
            # A guest counts its calls to its host itself, if it is a module: that shows when it has been made.
            if record.engine != _WASM:
                raise

    def begin(self, entry: Entry[ContainerRecord]) -> None:
        """Watch it from now on, while it waits for its first instruction; repeated, nothing happens.

        :raises ForgeError: it cannot be watched.
        """
        record = entry.record
        behaviour = record.contract.behaviour
        if not behaviour.watched:
            return
        known = self._observed.get(record.id)
        if known is not None and (not known.group or known.group in self._recorder.watched()):
            self._tick(known)
            return
        chosen = self._chosen(record, behaviour)
        try:
            group = self._group(record, entry.pid)
            self._recorder.check()
        except FailedPrecondition:
            if self._host_calls(record) is None:
                raise
            group = Group(0, 0)
        made = Observed(
            container=record.id,
            image=record.image_id,
            engine=record.engine,
            group=group.id,
            level=group.level,
            whole=not record.restored and (known is None or known.whole),
            baseline="" if chosen is None else chosen.digest,
        )
        # First, so that a group which is watched is always known to be somebody's.
        self._keep(made)
        if group.id:
            self._recorder.watch(group)
        self._tick(made)

    def executing(self, record: ContainerRecord) -> None:
        """Before a command is executed in it: what the runtime does on the way there is not its own doing."""
        with self._lock:
            known = self._observed.get(record.id)
            if known is not None and not known.executed:
                self._put(replace(known, executed=True))

    def told(self, made: Transition) -> None:
        """A subscriber of the lifecycle: what a container did is kept when it ends, and forgotten when it goes."""
        if made.subject is not Subject.CONTAINER or made.id not in self._observed:
            return
        try:
            if made.event is Event.EXIT and isinstance(made.record, ContainerRecord):
                self._finish(made.record)
            elif made.event is Event.REMOVE:
                self.forget(made.id)
        except Exception:
            # The step has been made and stored, and others are to be told of it.
            self._log.exception("what it did is lost", container=made.id)

    def forget(self, container_id: str) -> None:
        """It goes, or was never completed. Idempotent."""
        with self._lock:
            known = self._observed.get(container_id)
        # First, so that what fails here is done when it is repeated: a group that is watched is always somebody's.
        if known is not None and known.group:
            try:
                self._recorder.forget(known.group)
            except FailedPrecondition as error:
                # Where nobody can be watched any more, a container must go all the same.
                self._log.warning("it may be watched still", container=container_id, error=str(error))
        self._lost.discard(container_id)
        with self._lock:
            if known is not None:
                self._p.store.delete(_KIND, container_id)
            self._observed.pop(container_id, None)
            self._ordered.pop(container_id, None)
        self._recorder.settle()

    def recover(self) -> None:
        """After a restart: what was watched goes on being watched, and what became of it meanwhile is noted."""
        for known in tuple(self._observed.values()):
            try:
                self._recover(known)
            except ForgeError as error:
                self._lost.add(known.container)
                self._log.exception("it is not watched any more", container=known.container)
                self._note(known.container, "unwatched", why=str(error))
        try:
            self._recorder.keep({one.group for one in tuple(self._observed.values()) if one.profile is None})
            self._news()
        except ForgeError as error:
            # Pods run all the same; those that are to be watched do not start.
            self._log.warning("what containers do is not known", error=str(error))

    def _recover(self, known: Observed) -> None:
        try:
            entry = self._p.containers.find(known.container)
        except NotFound:
            self.forget(known.container)
            return
        record = entry.record
        if record.state is State.TERMINATED:
            if known.profile is None:
                self._finish(record)
            return
        if known.group and known.group not in self._recorder.watched():
            # Another forgeone's program was loaded, or somebody has removed it.
            self._keep(replace(known, whole=False))
            self._recorder.watch(Group(known.group, known.level))
        if len(known.drift) > known.acted:
            self._act(known.container)
        self._tick(known)

    def _finish(self, record: ContainerRecord) -> None:
        """Keep what a container that has ended did; whoever comes second finds it done."""
        with self._finishing:
            known = self._observed.get(record.id)
            if known is None or known.profile is not None:
                return
            done = self._profile(known, record)
            with self._lock:
                known = self._observed.get(record.id)
                if known is None:
                    return
                self._put(replace(known, profile=done))
            self._compare(known, {one.name for one in (*done.system, *done.host)}, record, live=False)
            if known.group:
                self._recorder.forget(known.group)

    def close(self) -> None:
        """Let go; what is watched goes on being counted."""
        self._closing.set()
        self._recorder.close()

    # -- what is known

    def standing(self, record: ContainerRecord) -> Watched:
        """What the trust in a container depends on."""
        known = self._observed.get(record.id)
        if known is None:
            return UNWATCHED
        watched = record.id not in self._lost
        return Watched(watched=watched, baseline=bool(known.baseline), drift=drifts.amount(known.drift))

    def summary(self, record: ContainerRecord) -> dict[str, object] | None:
        """The same in words, without a look at what it does right now; ``None``: it is not watched."""
        known = self._observed.get(record.id)
        if known is None:
            return None
        return {
            "whole": known.whole,
            "executed": known.executed,
            "baseline": known.baseline or None,
            "drift": drifts.amount(known.drift),
            "new": known.drift,
            "answered": known.drift[: known.acted],
        }

    def find(self, container_id: str) -> Finding:
        """What a container did until now, or until it ended.

        :raises FailedPrecondition: it is not watched.
        """
        record = self._p.containers.find(container_id).record
        if record.state is State.TERMINATED:
            # Its end can be seen before whoever took note of it has done all that follows.
            self._finish(record)
        known = self._observed.get(record.id)
        if known is None:
            raise FailedPrecondition(
                f"container {record.id[:13]} is not watched",
                fix="have its contract say behaviour: {watch: true}, and start it anew",
            )
        seen = self._profile(known, record)
        baseline = self._baseline(known.baseline)
        return Finding(known, seen, baseline, None if baseline is None else self._drift(baseline, seen, known))

    def learn(self, container_id: str, *, anew: bool) -> Baseline:
        """Add what a container did to what is usual for its image.

        :raises FailedPrecondition: it is not watched, or did nothing that could be learned.
        """
        found = self.find(container_id)
        made = self.library.learn(found.observed.image, found.observed.engine, found.profile, anew=anew)
        self._note(found.observed.container, "learned", baseline=made.digest)
        return made

    def pin(self, image: str) -> Baseline:
        """What was learned of an image is what its containers are compared with, those too that run."""
        made = self.library.pin(image)
        self._repinned(made)
        return made

    def adopt(self, baseline: Baseline) -> None:
        """The same with one that was learned elsewhere."""
        self.library.adopt(baseline)
        self._repinned(baseline)

    def unpin(self, image: str) -> None:
        """Its containers are compared with nothing, but where a contract names a baseline."""
        self.library.unpin(image)
        self._p.chronicle.note("baseline.unpinned", f"image/{image}")
        self._compare_anew(image, None)

    def _repinned(self, baseline: Baseline) -> None:
        self._p.chronicle.note("baseline.pinned", f"image/{baseline.image}", baseline=baseline.digest)
        self._compare_anew(baseline.image, baseline)
        self._news()

    def _compare_anew(self, image: str, baseline: Baseline | None) -> None:
        with self._lock:
            self._ordered.clear()
            for known in tuple(self._observed.values()):
                if known.image != image or known.profile is not None or self._names_one(known.container):
                    continue
                fits = baseline is not None and _comparable(baseline, known.engine)
                digest = baseline.digest if baseline is not None and fits else ""
                self._put(replace(known, baseline=digest, drift=(), acted=0))

    def _names_one(self, container_id: str) -> bool:
        try:
            return bool(self._p.containers.find(container_id).record.contract.behaviour.baseline)
        except NotFound:
            return False

    def _chosen(self, record: ContainerRecord, behaviour: Behaviour) -> Baseline | None:
        if not behaviour.baseline:
            usual = self.library.pinned(record.image_id)
            return usual if usual is not None and _comparable(usual, record.engine) else None
        found = self._baseline(behaviour.baseline)
        if found is None:
            raise FailedPrecondition(
                f"the contract names the baseline {behaviour.baseline}, which is not on this node",
                fix="forge dna pin --file BASELINE",
            )
        if found.image != record.image_id or not _comparable(found, record.engine):
            raise FailedPrecondition(
                f"the contract names the baseline {behaviour.baseline}, which is of image {found.image} on the "
                f"{found.engine} engine and {found.machine}; the container is of {record.image_id} on {record.engine} "
                f"and {platform.machine()}"
            )
        return found

    def _baseline(self, digest: str) -> Baseline | None:
        if not digest:
            return None
        found = self._known.get(digest) or self.library.named(digest)
        if found is not None:
            self._known[digest] = found
        return found

    def _profile(self, known: Observed, record: ContainerRecord) -> Profile:
        if known.profile is not None:
            return known.profile
        counts = self._recorder.read(known.group) if known.group else None
        if counts is None and known.group:
            # It has ended this very moment, or the watch was lost.
            now = self._observed.get(known.container, known)
            if now.profile is not None:
                return now.profile
        whole = known.whole and (counts is not None or not known.group)
        return profile(counts, self._host_calls(record) or (), whole=whole)

    def _host_calls(self, record: ContainerRecord) -> tuple[Seen, ...] | None:
        try:
            counted = self._p.engines[record.engine].host_counts(self._p.handle(record))
        except ForgeError as error:
            self._log.warning("its guest's calls cannot be read", container=record.id, error=str(error))
            return None
        return None if counted is None else tuple(Seen(one.name, one.count) for one in counted)

    @staticmethod
    def _drift(baseline: Baseline, seen: Profile, known: Observed) -> Drift:
        usual = {one.name for one in baseline.system}
        own = drifts.excused(known.engine, executed=known.executed) - usual
        seen = replace(seen, system=tuple(one for one in seen.system if one.name not in own))
        return drifts.drift(baseline, seen)

    # -- what is new

    def _news(self) -> None:
        """Some container has made a call that it had not made before."""
        self._look([one for one in tuple(self._observed.values()) if one.profile is None])

    def _look(self, watched: Collection[Observed]) -> None:
        failed: Exception | None = None
        # One look at a time: what two would find at once is to be told once.
        with self._looking:
            for known in watched:
                try:
                    self._look_at(known)
                except Exception as error:
                    # It is no reason not to look at the others.
                    failed = error
        if failed is not None:
            raise failed

    def _look_at(self, known: Observed) -> None:
        if not known.baseline:
            return
        try:
            record = self._p.containers.find(known.container).record
        except NotFound:
            return
        order = self._recorder.order(known.group) if known.group else None
        seen = (known.baseline, order or ())
        if order is not None and known.engine != _WASM and self._ordered.get(known.container) == seen:
            return
        called = {names.name(slot) for slot, place in enumerate(order or ()) if place}
        called |= {one.name for one in self._host_calls(record) or ()}
        self._compare(known, called, record, live=True)
        with self._lock:
            if known.container in self._observed:
                self._ordered[known.container] = seen

    def _compare(self, known: Observed, called: set[str], record: ContainerRecord, *, live: bool) -> None:
        baseline = self._baseline(known.baseline)
        if baseline is None:
            return
        with self._lock:
            now = self._observed.get(known.container)
            if now is None or now.baseline != known.baseline:
                # Another is pinned by now, and whoever did that looks at what it is compared with.
                return
            known = now
            usual = {one.name for one in (*baseline.system, *baseline.host)}.union(known.drift)
            fresh = sorted(called - usual - drifts.excused(known.engine, executed=known.executed))
            if not fresh:
                return
            known = replace(known, drift=(*known.drift, *fresh))
            self._put(known)
        self._log.warning("it does what is not usual for its image", container=record.id, calls=fresh)
        told = {"baseline": known.baseline, "calls": fresh, "on_drift": self._p.guard.on_drift(record), "live": live}
        self._p.chronicle.noted("drifted", record, **told, drift=drifts.amount(known.drift))
        if live:
            self._act(record.id)

    def _act(self, container_id: str) -> None:
        name = f"answer the drift of container {container_id[:13]}"
        self._p.janitor.until_done(name, lambda: self._answer(container_id))

    def _answer(self, container_id: str) -> None:
        """What its contract says is done; safe to repeat."""
        known = self._observed.get(container_id)
        try:
            entry = self._p.containers.find(container_id)
        except NotFound:
            return
        if known is None or len(known.drift) <= known.acted:
            return
        how = self._p.guard.on_drift(entry.record)
        why = f"it does what is not usual for its image: {', '.join(known.drift)}"
        if how == "stop":
            self._acts.stop(entry, why)
        elif how == "pause":
            try:
                self._acts.pause(entry)
            except FailedPrecondition as error:
                self._log.info("it is not paused", container=container_id, why=str(error))
                if entry.record.state is State.BOOTED:
                    # Its start is not over, or was not stored: it may run yet.
                    raise
                if entry.record.state is State.RUNNING:
                    self._acts.stop(entry, f"{why}; it cannot be paused: {error}")
        with self._lock:
            now = self._observed.get(container_id)
            if now is not None and now.drift[: len(known.drift)] == known.drift:
                self._put(replace(now, acted=max(now.acted, len(known.drift))))

    # -- guests, who tell nobody

    def _tick(self, known: Observed) -> None:
        with self._lock:
            if known.engine != _WASM or self._ticking:
                return
            threading.Thread(target=self._look_at_guests, name="guests", daemon=True).start()
            self._ticking = True

    def _look_at_guests(self) -> None:
        while not self._closing.wait(_LOOK_EVERY):
            with self._lock:
                guests = [one for one in self._observed.values() if one.engine == _WASM and one.profile is None]
                if not guests:
                    self._ticking = False
                    return
            try:
                self._look(guests)
            except Exception:
                self._log.exception("what guests do was not looked at")

    # -- stored

    def _keep(self, known: Observed) -> None:
        with self._lock:
            self._put(known)

    def _put(self, known: Observed) -> None:
        self._p.store.put(_KIND, known.container, known)
        self._observed[known.container] = known

    def _note(self, container_id: str, type_: str, **data: Any) -> None:
        try:
            record = self._p.containers.find(container_id).record
        except NotFound:
            return
        self._p.chronicle.noted(type_, record, **data)

    def _group(self, record: ContainerRecord, pid: int) -> Group:
        """Its control group of the unified hierarchy, with its first process in it."""
        host = self._p.cgroups
        mount = _hierarchy(host)
        path = host.occupied(record.cgroup) if host.mode is Mode.V2 else cgroups.relative(record.cgroup)
        directory = Path(mount + path)
        try:
            if not any(_within(found, path) for found in _unified(pid)):
                directory.mkdir(parents=True, exist_ok=True)
                cgroups.write(f"{directory}/cgroup.procs", str(pid))
            return group_at(mount, str(directory))
        except (FileNotFoundError, ProcessLookupError) as error:
            raise FailedPrecondition(f"container {record.id[:13]} died before it was started") from error
        except OSError as error:
            raise syscall_error("watch", directory, error) from error


def _comparable(baseline: Baseline, engine: str) -> bool:
    """Whether it is of what such a container does on this machine."""
    return (baseline.engine, baseline.machine) == (engine, platform.machine())


def _hierarchy(host: CgroupHost) -> str:
    if not host.unified:
        raise FailedPrecondition(
            "what containers do cannot be watched on this host: it has no unified control group hierarchy",
            fix="mkdir /sys/fs/cgroup/unified; mount -t cgroup2 none /sys/fs/cgroup/unified; restart forgeoned",
        )
    return host.unified


def _unified(pid: int) -> Iterator[str]:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        number, _, path = line.split(":", 2)
        if number == "0":
            yield path


def _within(path: str, group: str) -> bool:
    return path == group or path.startswith(f"{group}/")
