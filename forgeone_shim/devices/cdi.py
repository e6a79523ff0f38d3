"""CDI devices of a container: from their names to what they change in it, by the files that are there just then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engines.base import NO_EDITS, ContainerSpec, Edits
from forgeone_shim.devices import names
from forgeone_shim.devices.spec import DeviceFile, device_file, unique_interfaces
from forgeone_shim.dropins import documents
from forgeone_shim.dropins.files import DropIn, DropIns
from forgeone_shim.errors import FailedPrecondition, InvalidInput, NotFound

_REASONS_MAX = 5


def requested(devices: Sequence[str], annotations: Mapping[str, str]) -> tuple[str, ...]:
    """The devices that a container names, each once: its own list first, then annotations ``cdi.k8s.io/*``."""
    found = dict.fromkeys(devices)
    for key in sorted(annotations):
        if key.startswith(names.ANNOTATION_PREFIX):
            for name in annotations[key].split(","):
                if not names.QUALIFIED.fullmatch(name):
                    raise InvalidInput(f"config.annotations[{key!r}]", f"{name!r} is not a name vendor/class=device")
                found[name] = None
    return tuple(found)


class Cdi:
    """The devices described in some directories; later ones take precedence. Safe to call from many threads."""

    def __init__(self, directories: Sequence[str]) -> None:
        self._files = DropIns(
            directories, (".json", ".yaml"), lambda path, data: device_file(path, documents.parse(path, data))
        )

    def unusable(self) -> list[str]:
        """The files that cannot be used, each with the reason."""
        return [_reason(file) for file in self._files.read() if file.error]

    def edits(self, spec: ContainerSpec) -> Edits:
        """What the container's devices change in it. No file is looked at for a container that names none.

        :raises NotFound: devices that no file describes.
        :raises FailedPrecondition: a device that two files of one directory describe.
        """
        wanted = requested(spec.cdi_devices, spec.annotations)
        return resolve(wanted, self._files.read()) if wanted else NO_EDITS


def resolve(wanted: Sequence[str], files: Sequence[DropIn[DeviceFile]]) -> Edits:
    """The edits of these devices in their order, each preceded by those of its file if it is the first from there."""
    found = [(name, _find(name, files)) for name in wanted]
    missing = [name for name, file in found if file is None]
    if missing:
        raise NotFound("CDI device", ", ".join(missing), fix=_reasons(files))
    parts: list[Edits] = []
    begun: set[str] = set()
    for name, file in found:
        if file is None or file.value is None:
            continue
        if file.path not in begun:
            begun.add(file.path)
            parts.append(file.value.edits)
        parts.append(file.value.devices[name.partition("=")[2]])
    whole = _merged(parts)
    unique_interfaces("config.CDI_devices", whole.net_devices)
    return whole


def _find(name: str, files: Sequence[DropIn[DeviceFile]]) -> DropIn[DeviceFile] | None:
    kind, _, device = name.partition("=")
    found = [file for file in files if file.value and file.value.kind == kind and device in file.value.devices]
    best = [file for file in found if file.rank == max(file.rank for file in found)]
    if len(best) > 1:
        raise FailedPrecondition(f"CDI device {name!r} is described twice: in {best[0].path} and in {best[1].path}")
    return best[0] if best else None


def _reasons(files: Sequence[DropIn[DeviceFile]]) -> str:
    """What may be the matter: files that cannot be used."""
    bad = [_reason(file) for file in files if file.error]
    more = [f"and {len(bad) - _REASONS_MAX} more"] if len(bad) > _REASONS_MAX else []
    return "; ".join([*bad[:_REASONS_MAX], *more])


def _reason(file: DropIn[DeviceFile]) -> str:
    return file.error if file.error.startswith(file.path) else f"{file.path}: {file.error}"


def _merged(parts: Sequence[Edits]) -> Edits:
    return Edits(
        env=tuple(item for part in parts for item in part.env),
        nodes=tuple(item for part in parts for item in part.nodes),
        mounts=tuple(item for part in parts for item in part.mounts),
        hooks=tuple(item for part in parts for item in part.hooks),
        additional_gids=tuple(item for part in parts for item in part.additional_gids),
        rdt=next((part.rdt for part in reversed(parts) if part.rdt is not None), None),
        net_devices=tuple(item for part in parts for item in part.net_devices),
    )
