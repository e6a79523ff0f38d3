"""Installing, upgrading and uninstalling on one node: look, plan, carry out. One at a time on a node."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forgeone_shim.config import loader
from forgeone_shim.config.model import Config
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition, ForgeError
from forgeone_shim.node import bundle as bundles
from forgeone_shim.node import files, kubelet, layout, leftovers, plan, units, versions
from forgeone_shim.node.bundle import Bundle
from forgeone_shim.node.journal import Busy, Journal, Outcome, Record, Store
from forgeone_shim.node.layout import Layout
from forgeone_shim.node.plan import Seen, Way, Wish
from forgeone_shim.node.tree import NodeTree
from forgeone_shim.node.work import Runtimes, Services, Worker, names, own_pods

AUTO: Final = "auto"
REFUSED: Final = "refused"
_OWN: Final = "forgeone"
_SERVICES: Final = (layout.UNIT, kubelet.UNIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """How a node is given back; see ``forge node uninstall``."""

    service: bool = True
    drain: bool = False
    force: bool = False
    purge: bool = False


def opened(directory: str) -> Bundle:
    """The bundle in a directory; ``auto``: the one that this process is of.

    :raises ForgeError: there is none.
    """
    return bundles.read(bundles.running() if directory == AUTO else Path(directory).absolute())


class Installer:
    """``tell`` hears of each step as it begins."""

    def __init__(
        self, node: Layout, services: Services, runtimes: Runtimes, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self.node = node
        self.store = Store(node)
        self._services = services
        self._runtimes = runtimes
        self._worker = Worker(node, self.store, services, runtimes, tell)

    def recover(self) -> bool:
        """What comes at boot before forgeoned and the kubelet: files as they were before a run that was killed.

        A run that is still under way is left alone.

        :raises ForgeError: it cannot be undone.
        """
        with contextlib.suppress(Busy), self.store.locked():
            return self._worker.recover(wait=False)
        return False

    def install(self, directory: str, wish: Wish, keep: int, deadline: Deadline, *, dry_run: bool = False) -> Journal:
        """Have the node run the bundle in ``directory`` (``auto``: the one that this process is of).

        :raises ForgeError: it does not, and is as it was.
        """
        with self._alone(dry_run=dry_run):
            with self._told(plan.INSTALL, dry_run=dry_run):
                bundle = opened(directory)
                record, tree = self.store.record(), NodeTree(self.node)
                chosen = plan.way(tree, record, wish)
                seen = self._seen(
                    record,
                    service=wish.service,
                    laid=self._laid(bundle, thorough=not dry_run),
                    superfluous=versions.superfluous(self.node, bundle.version, keep),
                    running=self._replaced(chosen, deadline) if wish.service else (),
                    packaged=bundle.version in versions.packaged(self.node),
                    other=bool(chosen.upstream) and self.node.at(chosen.upstream, follow=True).exists(),
                )
                journal = plan.install(seen, wish, bundle, chosen)
            if not dry_run and (journal.steps or journal.after or journal.record != record):
                self._worker.carry_out(journal, deadline)
            return journal

    def uninstall(self, removal: Removal, deadline: Deadline, *, dry_run: bool = False) -> Journal:
        """Give the node back to the runtime that it had.

        :raises ForgeError: it is not, and all is as it was.
        """
        with self._alone(dry_run=dry_run):
            with self._told(plan.UNINSTALL, dry_run=dry_run):
                record = self.store.record()
                packaged = record is not None and record.version in versions.packaged(self.node)
                seen = self._seen(record, service=removal.service, packaged=packaged)
                if layout.UNIT in seen.active:
                    seen = dataclasses.replace(seen, running=self._own(record, removal, deadline))
                elif record is not None and not removal.force:
                    self._unattended()
                journal = plan.uninstall(
                    seen,
                    self._trees(purge=removal.purge),
                    service=removal.service,
                    drain=removal.drain,
                    force=removal.force,
                    purge=removal.purge,
                )
            if not dry_run and record is not None:
                network = self._config().network
                self._worker.carry_out(journal, deadline)
                if removal.service and not self.node.foreign:
                    leftovers.remove(network)
                self._tidy(purge=removal.purge)
            return journal

    @contextlib.contextmanager
    def _alone(self, *, dry_run: bool) -> Iterator[None]:
        """Nobody else works on the node, and nothing is half done; who only asks may see it half done."""
        if dry_run:
            yield
            return
        with self.store.locked():
            self._worker.recover()
            versions.forget_replaced(self.node)
            yield

    @contextlib.contextmanager
    def _told(self, verb: str, *, dry_run: bool) -> Iterator[None]:
        """What is refused before anything is done is the run's outcome, too."""
        try:
            yield
        except ForgeError as error:
            if not dry_run:
                self.store.keep(Outcome(verb, REFUSED, str(error)))
            raise

    def _seen(
        self,
        record: Record | None,
        *,
        service: bool,
        laid: str = "",
        superfluous: tuple[str, ...] = (),
        running: tuple[str, ...] = (),
        packaged: bool = False,
        other: bool = False,
    ) -> Seen:
        soon = Deadline.after(30)
        active = frozenset(unit for unit in _SERVICES if service and self._services.active(unit, soon))
        return Seen(
            files=NodeTree(self.node),
            record=record,
            current=files.readlink(self.node.at(layout.CURRENT)),
            links={path: files.readlink(self.node.at(path)) for path in units.LINKS},
            laid=laid,
            superfluous=superfluous,
            active=active,
            running=running,
            packaged=packaged,
            other=other,
        )

    def _laid(self, bundle: Bundle, *, thorough: bool) -> str:
        place = self.node.at(layout.version_directory(bundle.version))
        if not place.exists():
            return ""
        same = bundles.stamp(place) == bundle.digest
        if same and thorough:
            same = not bundles.problem(bundle, place, relocated=False)
        return "same" if same else "other"

    def _replaced(self, chosen: Way, deadline: Deadline) -> tuple[str, ...]:
        """The pods of the runtime in whose place ForgeOne comes; one without a socket is not there.

        :raises Unavailable: it does not answer; its pods run without it.
        """
        if chosen.mode != plan.REPLACE or not chosen.upstream or chosen.kubelet is None:
            return ()
        socket = self.node.at(chosen.upstream, follow=True)
        return names(self._runtimes.pods(socket, deadline)) if socket.exists() else ()

    def _unattended(self) -> None:
        """Pods do not end with forgeoned, and without it they cannot be listed."""
        if found := versions.processes(self.node, f"{layout.VERSIONS}/"):
            raise FailedPrecondition(
                f"forgeoned does not run, and processes of its pods do: {', '.join(found[:5])}",
                fix=f"systemctl start {layout.UNIT} and try again, or leave them behind by --force",
            )

    def _own(self, record: Record | None, removal: Removal, deadline: Deadline) -> tuple[str, ...]:
        beside = record.upstream if record is not None and record.mode == plan.BESIDE else ""
        other = self.node.at(beside, follow=True) if beside else None
        try:
            pods = own_pods(self._runtimes, self.node.at(layout.SOCKET, follow=True), other, deadline)
        except ForgeError:
            if removal.force:
                return ()
            raise
        return names(pods)

    def _trees(self, *, purge: bool) -> tuple[str, ...]:
        kept = versions.packaged(self.node)
        laid = [f"{layout.VERSIONS}/{name}" for name in versions.present(self.node) if name not in kept]
        config = self._config()
        own = [config.state, str(Path(layout.FINDINGS).parent)]
        own += [config.root, str(Path(layout.CONFIG).parent)] if purge else []
        # Whoever has configured `state = "/run"` has more there than forgeoned's.
        return (*laid, *(path for path in own if _OWN in Path(path).name))

    def _config(self) -> Config:
        """The configuration in use; what cannot be read is not what forgeoned runs with."""
        content = files.read(self.node.at(layout.CONFIG, follow=True)) or b""
        try:
            return loader.parsed(content.decode(errors="replace"), Path(layout.CONFIG))
        except ForgeError:
            return Config()

    def _tidy(self, *, purge: bool) -> None:
        """Directories in which there is nothing any more, and the installer's own memory."""
        parents = (str(Path(path).parent) for path in (*units.LINKS, layout.CONFIG))
        for path in (layout.VERSIONS, layout.PREFIX, *parents):
            with contextlib.suppress(OSError):
                self.node.at(path).rmdir()
        if purge:
            versions.remove(self.node.at(layout.STATE))
