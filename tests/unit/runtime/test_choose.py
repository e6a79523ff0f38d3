"""Which engine a container gets, by its image, its command and its pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from engines.base import ContainerSpec, SandboxSpec
from forgeone_shim.errors import InvalidInput
from forgeone_shim.registry.model import Image, ImageConfig
from forgeone_shim.runtime import choose

LINUX = Image(id="l", os="linux", architecture="amd64", config=ImageConfig(entrypoint=("/bin/sh",)))
FILE = replace(LINUX, config=ImageConfig(entrypoint=("/app.wasm#main",)))
WASI = replace(FILE, os="wasi", architecture="wasm")
BARE = Image(id="b", module="/module.wasm", artifact="application/vnd.wasm.config.v0+json", os="wasip1")
COMPAT = replace(LINUX, annotations={"module.wasm.image/variant": "compat"})
SMART = replace(LINUX, annotations={"module.wasm.image/variant": "compat-smart"})
SMART_FILE = replace(FILE, annotations=SMART.annotations)
POD = SandboxSpec(name="p", uid="u", namespace="n")


def chosen(
    image: Image, of_pod: str = "wasm", spec: ContainerSpec | None = None, pod: Mapping[str, str] | None = None
) -> str:
    sandbox = replace(POD, annotations=pod or {}, runtime_handler="" if of_pod == "native" else f"forgeone-{of_pod}")
    return choose.engine(
        sandbox, spec or ContainerSpec(name="c", image="app"), image, of_pod=of_pod, handlers=("forgeone-wasm", "spin")
    )


@pytest.mark.parametrize(
    ("image", "engine"),
    [
        (LINUX, "native"),
        (FILE, "wasm"),
        (WASI, "wasm"),
        (BARE, "wasm"),
        (COMPAT, "wasm"),
        (SMART, "native"),
        (SMART_FILE, "wasm"),
    ],
)
def test_in_a_pod_of_webassembly_the_image_decides(image: Image, engine: str) -> None:
    assert chosen(image) == engine


@pytest.mark.parametrize("image", [WASI, BARE, COMPAT, SMART_FILE])
def test_a_module_in_another_pod_is_refused_with_what_to_do(image: Image) -> None:
    with pytest.raises(InvalidInput, match=r"'app' is WebAssembly .*handler forgeone-wasm or spin"):
        chosen(image, "native")
    with pytest.raises(InvalidInput, match="'forgeone-microvm' runs programs"):
        chosen(image, "microvm")


def test_without_the_engine_the_advice_is_to_install_it() -> None:
    with pytest.raises(InvalidInput, match="install the wasm engine"):
        choose.engine(POD, ContainerSpec(name="c", image="app"), BARE, of_pod="native", handlers=())


@pytest.mark.parametrize("image", [LINUX, FILE, SMART])
def test_a_program_in_a_pod_of_programs_is_one_whatever_its_file_is_called(image: Image) -> None:
    assert chosen(image, "native") == "native"


def chosen_strictly(image: Image) -> str:
    pod = replace(POD, runtime_handler="strict")
    spec = ContainerSpec(name="c", image="app")
    return choose.engine(pod, spec, image, of_pod="wasm", handlers=("forgeone-wasm", "strict"), wasm_only=True)


@pytest.mark.parametrize("image", [LINUX, SMART])
def test_a_handler_may_keep_programs_out_of_its_pods(image: Image) -> None:
    assert chosen_strictly(FILE) == "wasm"
    with pytest.raises(InvalidInput, match=r"'app' is a program's \(linux/amd64\), and the pod's handler 'strict'"):
        chosen_strictly(image)


@pytest.mark.parametrize("command", [("/bin/app.wasm", "x"), ("app.wat",), ("a.wasm#f",)])
def test_a_command_of_the_containers_own_counts(command: tuple[str, ...]) -> None:
    assert chosen(LINUX, spec=ContainerSpec(name="c", command=command)) == "wasm"
    assert chosen(FILE, spec=ContainerSpec(name="c", command=("/bin/sh", "-c", "cat /app.wasm"))) == "native"


@pytest.mark.parametrize(
    ("pod", "container", "engine"),
    [
        ({"run.oci.handler": "wasm"}, {}, "wasm"),
        ({}, {"run.oci.handler": "wasm"}, "wasm"),
        ({"run.oci.handler": "wasm"}, {"run.oci.handler": "wasm-smart"}, "native"),
        ({"run.oci.handler": "wasm-smart"}, {}, "native"),
        ({"run.oci.handler": "krun"}, {}, "native"),
    ],
)
def test_the_annotation_of_crun_counts_the_containers_first(
    pod: dict[str, str], container: dict[str, str], engine: str
) -> None:
    assert chosen(LINUX, spec=ContainerSpec(name="c", annotations=container), pod=pod) == engine


def test_the_annotation_makes_no_module_of_a_program_in_another_pod() -> None:
    assert chosen(LINUX, "native", pod={"run.oci.handler": "wasm"}) == "native"


@pytest.mark.parametrize("of_pod", ["native", "wasm"])
def test_an_artifact_that_is_no_module_cannot_be_run(of_pod: str) -> None:
    with pytest.raises(InvalidInput, match="OCI artifact"):
        chosen(Image(id="a", artifact="application/vnd.example.model"), of_pod)


def test_a_module_needs_no_command_and_a_program_does() -> None:
    assert chosen(BARE) == "wasm"
    with pytest.raises(InvalidInput, match=r"config\.command"):
        chosen(replace(LINUX, config=ImageConfig()))


def chosen_freely(image: Image, of_pod: str = "native", annotation: str = "", wasm: bool = True) -> str:
    pod = replace(
        POD, runtime_handler="forgeone-auto", annotations={"run.oci.handler": annotation} if annotation else {}
    )
    spec, handlers = ContainerSpec(name="c", image="app"), ("forgeone-wasm",) if wasm else ()
    return choose.engine(pod, spec, image, of_pod=of_pod, handlers=handlers, free=True)


@pytest.mark.parametrize("image", [WASI, BARE, COMPAT, SMART_FILE])
def test_a_module_beside_programs_is_run_as_one_where_the_engine_is_open(image: Image) -> None:
    assert chosen_freely(image) == "wasm"
    assert chosen_freely(image, "wasm") == "wasm"


def test_a_program_beside_modules_stays_one_where_the_engine_is_open() -> None:
    assert [chosen_freely(one) for one in (LINUX, FILE, SMART)] == ["native"] * 3
    assert chosen_freely(LINUX, "wasm") == "native"
    assert chosen_freely(FILE, annotation="wasm-smart") == "wasm"


def test_a_module_of_a_pod_that_got_a_machine_is_refused_with_what_to_do() -> None:
    assert chosen_freely(LINUX, "microvm") == "microvm"
    with pytest.raises(
        InvalidInput, match=r"the engine chosen for the pod is microvm .*exec_mode: wasm, or a RuntimeC"
    ):
        chosen_freely(WASI, "microvm")


def test_a_module_is_refused_where_there_is_no_engine_for_it_however_the_pods_was_chosen() -> None:
    with pytest.raises(InvalidInput, match="install the wasm engine"):
        chosen_freely(WASI, wasm=False)
