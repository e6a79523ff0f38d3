"""Images of this node: pull, find, list, remove, and the garbage that follows."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import structlog

from forgeone_shim.attestation.evidence import Endorsement
from forgeone_shim.config.model import PackagesConfig, RegistryConfig, SignaturesConfig
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import (
    InvalidInput,
    NotFound,
    Unavailable,
)
from forgeone_shim.package import image as packaged
from forgeone_shim.package import media
from forgeone_shim.registry import authfiles, earlier, exports
from forgeone_shim.registry.archives import LayoutSource, Named, named
from forgeone_shim.registry.endorsing import Asking, Endorser, NoWitness, Witness
from forgeone_shim.registry.fetch import BlobFolder, LayerFetcher, Layers, Resolved, Turns, resolve
from forgeone_shim.registry.flights import Flight, Flights, Order, Progress, explained
from forgeone_shim.registry.hosts import endpoints_for
from forgeone_shim.registry.layout import Archive
from forgeone_shim.registry.manifest import host_platform
from forgeone_shim.registry.model import Credentials, Image, LayerProgress
from forgeone_shim.registry.modules import VARIANT
from forgeone_shim.registry.origin import Origin
from forgeone_shim.registry.records import ImageRecords
from forgeone_shim.registry.reference import Reference
from forgeone_shim.registry.settings import Settings
from forgeone_shim.registry.source import Source
from forgeone_shim.registry.transport import Session, TlsContexts
from forgeone_shim.registry.vetting import Vetting
from forgeone_shim.state.store import StateStore


class Audience(Protocol):
    """Who wants to know which images there are: it gets ready for them."""

    def arrived(self, image: Image, deadline: Deadline) -> None:
        """It has been pulled, perhaps again; its pull ends when this returns, and is not undone if it raises."""

    def remaining(self, ids: Collection[str]) -> None:
        """These are all there are."""


class _Nobody:
    """An audience that does not care."""

    def arrived(self, image: Image, deadline: Deadline) -> None:
        pass

    def remaining(self, ids: Collection[str]) -> None:
        pass


class ImageService:
    """Thread-safe; a second process may serve the same root beside this one.

    ``layers_in_use`` names the diff ids containers stand on. It is called while images are being removed and must not
    call back. The ``audience`` is told outside of every lock but one: an image that has just arrived is among the
    ``remaining``, or they are told before it arrives. ``abi`` is the version of the host interface that packages find.
    The ``witness`` is told which images were vouched for and which were refused.

    :raises ForgeError: there is no such platform, or a policy of ``signatures`` cannot be used.
    """

    def __init__(
        self,
        store: StateStore,
        root: Path,
        config: RegistryConfig,
        layers: Layers,
        *,
        pinned: Sequence[str],
        layers_in_use: Callable[[], set[str]],
        audience: Audience | None = None,
        packages: PackagesConfig | None = None,
        signatures: SignaturesConfig | None = None,
        witness: Witness | None = None,
        abi: tuple[int, int] | None = None,
    ) -> None:
        self._abi = abi
        self._root = root
        self._layers = layers
        self._layers_in_use = layers_in_use
        self._records = ImageRecords(store, pinned)
        self._documents = BlobFolder(root / "images")
        self._blobs = BlobFolder(root / "blobs")
        self._turns = Turns()
        self._settings = self._settle(config, packages or PackagesConfig(), signatures or SignaturesConfig())
        self._contexts = TlsContexts()
        self._endorser = Endorser(self._records, self._documents, self._gated, witness or NoWitness())
        self._flights = Flights(self._contexts, self._pull)
        self._loads: dict[Session, threading.Event] = {}
        self._lock = threading.Lock()
        self._gate = threading.Lock()
        self._audience: Audience = audience or _Nobody()
        self._news = threading.Lock()
        for image in filter(earlier.is_earlier, self._records.all()):
            self._records.replace(earlier.as_now(image, self._documents.read(image.manifest_digest)))
        self._log = structlog.get_logger("images")
        (root / "images").mkdir(parents=True, exist_ok=True, mode=0o700)

    def reconfigure(
        self,
        config: RegistryConfig,
        pinned: Sequence[str],
        packages: PackagesConfig | None = None,
        signatures: SignaturesConfig | None = None,
    ) -> tuple[str, ...]:
        """Pulls that begin from now on, and what is pinned, go by these; what is not given stays as it is.

        Policies about signatures are read anew; returns what of them is different.

        :raises ForgeError: there is no such platform, or a policy cannot be used; nothing has changed then.
        """
        take = self.plan(config, pinned, packages, signatures)
        return take()

    def plan(
        self,
        config: RegistryConfig,
        pinned: Sequence[str],
        packages: PackagesConfig | None = None,
        signatures: SignaturesConfig | None = None,
    ) -> Callable[[], tuple[str, ...]]:
        """What :meth:`reconfigure` does, in two steps: whatever can fail has been done when this returns."""
        before = self._settings
        settings = self._settle(config, packages or before.packages, signatures or before.signatures, before.vetting)

        def take() -> tuple[str, ...]:
            self._records.pin(pinned)
            self._settings = settings
            was, now = (one.vetting.digest if one.vetting is not None else "" for one in (before, settings))
            return () if was == now else ("signature policies",)

        return take

    def _settle(
        self,
        config: RegistryConfig,
        packages: PackagesConfig,
        signatures: SignaturesConfig,
        before: Vetting | None = None,
    ) -> Settings:
        fetcher = LayerFetcher(
            self._layers, self._turns, self._blobs, config.max_concurrent_downloads, keep=config.keep_blobs
        )
        vetting = Vetting.open(signatures, before)
        return Settings(config, packages, signatures, vetting, self._abi, fetcher, host_platform(config.platform))

    def pull(
        self,
        image: str,
        auth: Credentials | None,
        deadline: Deadline,
        progress: Progress | None = None,
        *,
        namespace: str = "",
        wasm: bool = False,
    ) -> Image:
        """Bring an image here, or what is missing of it. Two pulls of one name with the same credentials are one.

        Where the name stands for a WebAssembly image and one of this host's programs, ``wasm`` says which one is meant.
        Where it stands for only one of them, that is it.

        Without ``auth``, credentials come from the files that the configuration names, those of the Kubernetes
        ``namespace`` the image is for first. ``progress`` is called from other threads.

        :raises NotFound: the registry has no such image. PermissionDenied: it does not let us in.
        :raises UntrustedImage: a policy demands that somebody stands behind it who does not. Nothing of it came.
        :raises DeadlineExceeded: the deadline passed or was abandoned, and nobody else waits: what was fetched for this
            pull alone is gone again.
        :raises Unavailable: no configured host could be reached, or a layer made no progress.
        """
        reference = Reference.parse(image)
        if not auth:
            files = self._settings.config
            auth = authfiles.find(reference, namespace, namespaces=files.namespaced_auth_dir, node=files.auth_file)
        settings = self._settings
        # What is asked of an image depends on policies and namespace; pulls that ask for different things are two.
        asked = ("", None) if settings.vetting is None else (namespace, settings.vetting)
        return self._flights.take(Order(reference, auth or None, wasm, *asked), settings, deadline, progress)

    def resolve(self, ref: str, *, wasm: bool = False) -> Image:
        """The image of an id, the unique beginning of one, or a name; ``wasm`` as for :meth:`pull`.

        :raises NotFound: when it is not on this node.
        """
        return self._records.find(ref, wasm=wasm)

    def choose(self, ref: str, said: str, *, wasm: bool) -> Image:
        """The image for a container: ``ref`` is what it was resolved to, perhaps, and ``said`` what its author wrote.

        Whoever resolved it need not have known for which handler that was: of a name that stands for two images the
        right one is taken, if it is here.

        :raises NotFound: when it is not on this node.
        """
        found = self._records.find(ref, wasm=wasm)
        if said and found.is_wasm is not wasm and found.shared:
            with suppress(NotFound, InvalidInput):
                other = self._records.find(said, wasm=wasm)
                if set(found.shared) & set(other.shared):
                    return other
        return found

    def endorsement(self, image: Image, name: str, namespace: str, deadline: Deadline) -> Endorsement:
        """Who stands behind an image that a container is to be made of, by this node's policies as they are now.

        ``name`` is what the pod's author called it, an id where nobody did; ``namespace`` is the pod's. What was found
        at the pull counts; the registry is asked again only where that is not enough.

        :raises UntrustedImage: not those who must, or the registry that would have to be asked does not answer.
        """
        settings = self._settings
        signers = settings.signers(image)
        if settings.vetting is None:
            return Endorsement(signers)
        asking = Asking(settings.config, settings.vetting, self._contexts)
        return self._endorser.created(image, name, namespace, deadline, asking, signers=signers)

    def named(self, ref: str) -> list[Image]:
        """Like :meth:`resolve`, with both images of a name that stands for two; none where there is no such image."""
        try:
            return self._records.named(ref)
        except NotFound:
            return []

    def list(self) -> list[Image]:
        """Every image, by id."""
        return self._records.all()

    def remove(self, ref: str) -> None:
        """Remove an image under all its names, and the layers nobody else needs; one that is not here is no error."""
        with self._gated():
            images = self.named(ref)
            if not images:
                return
            for image in images:
                self._records.delete(image.id)
            self._sweep(
                {layer for image in images for layer in image.layers}, [blob for one in images for blob in one.blobs]
            )
        self._tell()

    def export(self, names: Sequence[str]) -> Iterator[bytes]:
        """Images as an OCI layout in a tar, a piece at a time: under the name that was asked for, or, by id, under all.

        :raises NotFound: one is not on this node. FailedPrecondition: what it was made from is not all kept here.
        """
        with self._gated():
            chosen = exports.choose(names, self._records.named)
            layers = {layer for each in chosen for layer in each.image.layers}
            blobs = [blob for each in chosen for blob in each.image.blobs]
            lease = self._records.lease(layers, blobs)
        try:
            yield from exports.pieces(chosen, self._documents, self._blobs, self._layers)
        finally:
            with self._gated():
                self._records.release(lease)
                # Of an image that was removed meanwhile.
                self._sweep(layers, blobs)

    def receive(self, pieces: Iterable[bytes], deadline: Deadline, name: str = "") -> tuple[Image, ...]:
        """Like :meth:`load`, of an archive that comes in pieces. It is read whole before anything is believed of it.

        :raises ResourceExhausted: there is no room for it.
        """
        try:
            # A file without a name cannot outlive this process.
            fd = os.open(self._root, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "r+b") as file:
                for piece in pieces:
                    deadline.check("while an archive came")
                    file.write(piece)
                # Of a caller who went away the pieces may just end.
                deadline.check("while an archive came")
                file.flush()
                return self.load(Archive(file, "the archive"), deadline, name)
        except OSError as error:
            raise explained(error, "import of an archive") from None

    def load(self, archive: Archive, deadline: Deadline, name: str = "") -> tuple[Image, ...]:
        """Bring the images of an archive here, as a pull does: under ``name``, or under those that it has for them.

        Those that came before one that fails stay. Signatures that the archive has of them are kept; by whom they must
        be is asked when a container is made, since here nobody says for which pods they are.

        :raises InvalidInput: one has no name, or it is no archive. UntrustedImage: a package is not trusted.
        """
        session = Session(self._contexts, Deadline.after(deadline.remaining()), self._settings.config.progress_timeout)
        with self._lock:
            self._loads[session] = done = threading.Event()
        deadline.listen(session.cancel)
        try:
            return tuple(image for each in named(archive, name) for image in self._load(session, archive, each))
        except Exception as error:
            raise explained(error, f"import from {archive.name}") from None
        finally:
            deadline.ignore(session.cancel)
            with self._lock:
                del self._loads[session]
            done.set()

    def _load(self, session: Session, archive: Archive, wanted: Named) -> Iterator[Image]:
        source, settings, first = LayoutSource(session, archive, wanted), self._settings, ""
        for modules_first in (False, True):
            resolved = resolve(source, settings.platform, settings.trust, modules_first=modules_first)
            if resolved.manifest_digest == first:
                return  # of two that share the name, the archive has one
            resolved = self._endorser.imported(source, resolved)
            yield self._bring(source, resolved, settings, _no_listener)
            if not resolved.shared:
                return
            first = resolved.manifest_digest

    def usage(self) -> tuple[int, int]:
        """Bytes and inodes that images take."""
        size, inodes = map(sum, zip(self._documents.usage(), self._blobs.usage(), strict=True))
        for diff_id in list(self._layers.ids()):
            with suppress(NotFound):
                info = self._layers.info(diff_id)
                size += info.size
                inodes += info.inodes
        return size, inodes

    def collect_garbage(self) -> None:
        """Delete layers and blobs that no image, container or pull needs: after a crash, or a container's removal."""
        with self._gated():
            self._sweep(set(self._layers.ids()), [*self._documents.digests(), *self._blobs.digests()])
        self._tell()

    def close(self) -> None:
        """End every pull under way and undo it; nothing is left behind when this returns."""
        with self._lock:
            loads = dict(self._loads)
        for session in loads:
            session.cancel()
        self._flights.close()
        for done in loads.values():
            done.wait()

    def document(self, digest: str) -> bytes | None:
        """An index, manifest or config an image here was made from; ``None`` when it is not kept."""
        return self._documents.read(digest)

    def _tell(self) -> None:
        """Say which images remain. What goes wrong there is no fault of the images', and is made good by the next."""
        with self._news:
            try:
                self._audience.remaining([image.id for image in self._records.all()])
            except Exception as error:
                self._log.warning("what belonged to images that are gone is left", error=str(error))

    def _pull(self, flight: Flight) -> Image:
        order, settings = flight.order, flight.settings
        reference = order.reference
        hosts = endpoints_for(Path(settings.config.config_path), reference.registry, order.auth)
        source = Source(flight.session, reference, hosts)
        resolved = resolve(source, settings.platform, settings.trust, modules_first=order.wasm)
        if settings.vetting is not None:
            resolved = self._endorser.pulled(source, resolved, order.namespace, settings.vetting)
        return self._bring(source, resolved, settings, flight.tell)

    def _bring(self, source: Origin, resolved: Resolved, settings: Settings, tell: Progress) -> Image:
        session, reference = source.session, source.reference
        with self._leased(resolved, settings):
            settings.fetcher.fetch(source, resolved, tell)
            session.check(f"before the commit of {reference}")
            with self._news:
                image = self._commit(reference, resolved, settings)
        self._prepare(session, reference, image)
        return image

    def _prepare(self, session: Session, reference: Reference, image: Image) -> None:
        """Let others get ready for it. Who cannot says so again when a container is made of it."""
        with session.deadline.within() as deadline:
            session.on_cancel(deadline.abandon)
            if session.cancelled.is_set():
                return
            try:
                self._audience.arrived(image, deadline)
            except Exception as error:
                self._log.warning("nothing is ready for an image", image=str(reference), error=str(error))

    @contextmanager
    def _leased(self, resolved: Resolved, settings: Settings) -> Iterator[None]:
        """Nothing of this image is collected while the block runs; if it fails, what only it needed goes."""
        layers, blobs = set(resolved.file.diff_ids), settings.blob_digests(resolved)
        with self._gated():
            lease = self._records.lease(layers, blobs)
        try:
            yield
        except BaseException:
            with self._gated():
                self._records.release(lease)
                self._sweep(layers, blobs)
            raise
        self._records.release(lease)

    def _commit(self, reference: Reference, resolved: Resolved, settings: Settings) -> Image:
        """Make the image known, once everything it stands on is here."""
        file = resolved.file
        gone = [diff_id for diff_id in file.diff_ids if not self._layers.has(diff_id)]
        if gone:
            raise Unavailable(f"{reference}: layer {gone[0]} was removed during the pull", fix="pull again")
        for digest, data in resolved.documents.items():
            self._documents.write(digest, data)
        documents = sum(len(data) for data in resolved.documents.values())
        artifact, module = resolved.manifest.artifact, resolved.manifest.module
        notes = resolved.manifest.annotations
        # Several artifacts may have the same config, and what has no archives for layers need not say them in it. What
        # its manifest calls WebAssembly is another image than the same config without that.
        by_manifest = artifact or module or VARIANT in notes
        image = Image(
            id=resolved.manifest_digest if by_manifest else resolved.manifest.config.digest,
            size=documents + sum(self._layers.info(diff_id).size for diff_id in set(file.diff_ids)),
            layers=file.diff_ids,
            config=file.config,
            annotations=packaged.foreign(notes) if artifact != media.ARTIFACT else notes,
            created=file.created,
            os=file.platform.os or settings.platform.os,
            architecture=file.platform.architecture or settings.platform.architecture,
            variant=file.platform.variant or "",
            manifest_digest=resolved.manifest_digest,
            blobs=settings.blob_digests(resolved),
            artifact=artifact,
            module=module,
            evidence={reference.at(resolved.target): resolved.evidence} if resolved.evidence else {},
        )
        before = self._records.evidence(image.id)
        committed = self._records.commit(image, reference, resolved.target, shared=resolved.shared)
        if before:
            with self._gated():
                self._documents.retain(self._records.needed()[1], before)
        return committed

    def _sweep(self, layers: set[str], blobs: Sequence[str]) -> None:
        """Delete those of the given layers and blobs that nobody needs. Only inside the gate."""
        needed_layers, needed_blobs = self._records.needed()
        for diff_id in sorted(layers - needed_layers - self._layers_in_use()):
            self._layers.remove(diff_id)
        self._documents.retain(needed_blobs, blobs)
        self._blobs.retain(needed_blobs, blobs)

    @contextmanager
    def _gated(self) -> Iterator[None]:
        """One at a time, over all processes: either a pull says what it counts on, or what nobody needs is deleted."""
        with self._gate:
            fd = os.open(self._root / "images" / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)


def _no_listener(_: LayerProgress) -> None:
    """Nobody asked how a layer is doing."""
