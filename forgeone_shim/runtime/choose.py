"""Which engine runs a container: its pod's, but for a program in a pod of WebAssembly. Pure.

A pod may mix: what stands beside a module there (a proxy, a collector of logs) is mostly a program of an ordinary
image. The other way round nothing is chosen, as a module in a pod of programs is a mistake to be told, unless the pod
leaves the choice to the node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from engines.base import ContainerSpec, SandboxSpec
from forgeone_shim.config.handlers import DEFAULT_ENGINE, WASM_ENGINE
from forgeone_shim.errors import InvalidInput
from forgeone_shim.registry.model import Image
from forgeone_shim.registry.modules import VARIANT
from forgeone_shim.runtime import process

ANNOTATION: Final = "run.oci.handler"
"""container, or pod; whoever writes the pod

In a pod of WebAssembly, or one whose engine is [chosen](auto.md): `wasm` has the [wasm
engine](operate.md#webassembly-images) run the container whatever its image says, `wasm-smart` where its command names a
`.wasm` or `.wat` file. As crun knows it; its other values mean nothing here.
"""

_EXEC_MODE: Final = "zta.forgeone.dev/exec_mode"
_SUFFIXES: Final = (".wasm", ".wat")
_SMART: Final = "-smart"


def wasm_first(engine: str) -> bool:
    """Whether the pods of an engine want the module where an image's name stands for a module and a program."""
    return engine == WASM_ENGINE


def engine(
    pod: SandboxSpec,
    spec: ContainerSpec,
    image: Image,
    *,
    of_pod: str,
    handlers: Sequence[str],
    wasm_only: bool = False,
    free: bool = False,
) -> str:
    """The engine of a container of ``image`` in a pod of the engine ``of_pod``.

    :param handlers: the names of those whose pods run modules, for the advice.
    :param wasm_only: the pod's handler has no programs beside them.
    :param free: the pod's engine was chosen for it: a module beside its programs is run as one.
    :raises InvalidInput: it is a module, and the pod runs none, or none but modules, and it is none; or it is an
        artifact that cannot be run at all.
    """
    if image.artifact and not image.module:
        what = f"{spec.image!r} is an OCI artifact ({image.artifact}): it has no command to run"
        raise InvalidInput("config.image.image", what, fix="mount it as an image volume")
    argv = process.argv(spec, image.config, image.module)
    name, asked_for = spec.user_specified_image or spec.image, pod.runtime_handler or f"forgeone-{of_pod}"
    if of_pod == WASM_ENGINE:
        if _asked(pod, spec, argv) or is_module(image, argv):
            return WASM_ENGINE
        if wasm_only:
            raise InvalidInput(
                "config.image.image",
                f"{name!r} is a program's ({image.platform}), and the pod's handler {asked_for!r} runs WebAssembly "
                "and nothing else",
                fix="give the pod a RuntimeClass with a handler that is not wasm_only",
            )
        return DEFAULT_ENGINE
    if free and of_pod == DEFAULT_ENGINE and handlers:
        # Without the engine for it, below, what to do is told.
        return WASM_ENGINE if _asked(pod, spec, argv) or is_module(image, argv, certain=True) else of_pod
    if free and is_module(image, argv, certain=True) and handlers:
        raise InvalidInput(
            "config.image.image",
            f"{name!r} is WebAssembly ({image.platform}), and the engine chosen for the pod is {of_pod}",
            fix=f"give the pod {_EXEC_MODE}: wasm, or a RuntimeClass with the handler {' or '.join(handlers)}",
        )
    if is_module(image, argv, certain=True):
        raise InvalidInput(
            "config.image.image",
            f"{name!r} is WebAssembly ({image.platform}), and the pod's handler {asked_for!r} runs programs of "
            "this host",
            fix=f"give the pod a RuntimeClass with the handler {' or '.join(handlers)}"
            if handlers
            else "install the wasm engine, and give the pod a RuntimeClass with its handler",
        )
    return of_pod


def is_module(image: Image, argv: Sequence[str], *, certain: bool = False) -> bool:
    """Whether a container of ``image`` that runs ``argv`` runs WebAssembly.

    An image says so by its form, its platform or its annotation. What has none of these, or the annotation's smart
    variant, is told by the file that it names, unless that must be ``certain``: on a host that has been taught to, a
    program's file may be a module.
    """
    variant = image.annotations.get(VARIANT, "")
    if image.is_wasm or variant == "compat":
        return True
    if certain and variant != f"compat{_SMART}":
        return False
    return _names_module(argv)


def _asked(pod: SandboxSpec, spec: ContainerSpec, argv: Sequence[str]) -> bool:
    asked = _first(ANNOTATION, spec.annotations, pod.annotations)
    return asked == WASM_ENGINE or (asked == WASM_ENGINE + _SMART and _names_module(argv))


def _first(key: str, *places: Mapping[str, str]) -> str:
    return next((given[key] for given in places if key in given), "")


def _names_module(argv: Sequence[str]) -> bool:
    return bool(argv) and argv[0].partition("#")[0].endswith(_SUFFIXES)
