"""What a container executes, by Kubernetes' table of command, args, entrypoint and cmd."""

import signal

import pytest

from engines.base import ContainerSpec, User
from forgeone_shim.errors import InvalidInput
from forgeone_shim.registry.model import ImageConfig
from forgeone_shim.runtime.process import argv, environment, process, signal_number

IMAGE = ImageConfig(entrypoint=("/entry",), cmd=("one", "two"), env=("PATH=/bin", "A=image", "EMPTY"))


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ((), (), ("/entry", "one", "two")),
        ((), ("x",), ("/entry", "x")),
        (("/run",), (), ("/run",)),
        (("/run",), ("x",), ("/run", "x")),
    ],
)
def test_argv(command: tuple[str, ...], args: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert argv(ContainerSpec(name="c", command=command, args=args), IMAGE) == expected


def test_without_any_command_the_field_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"config\.command"):
        argv(ContainerSpec(name="c"), ImageConfig())


MODULE = "/bin/hello.wasm"


@pytest.mark.parametrize(
    ("image", "command", "args", "expected"),
    [
        (ImageConfig(), (), (), ("hello.wasm",)),
        (ImageConfig(), (), ("x",), ("hello.wasm", "x")),
        (ImageConfig(), ("/",), (), ("/",)),
        (ImageConfig(), ("name#main",), ("x",), ("name#main", "x")),
        (ImageConfig(cmd=("hello", "-v")), (), (), ("hello", "-v")),
        (ImageConfig(cmd=("hello", "-v")), (), ("x",), ("hello.wasm", "x")),
        (ImageConfig(entrypoint=("hello",), cmd=("-v",)), (), ("x",), ("hello", "x")),
    ],
)
def test_a_module_is_run_without_being_named(
    image: ImageConfig, command: tuple[str, ...], args: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert argv(ContainerSpec(name="c", command=command, args=args), image, MODULE) == expected


def test_what_a_handler_sets_is_overridden_by_image_and_container() -> None:
    spec = ContainerSpec(name="c", envs=(("B", "mine"),))
    assert environment(spec, IMAGE, ("A=handler", "B=handler", "C=handler")) == (
        "A=image",
        "B=mine",
        "C=handler",
        "PATH=/bin",
        "EMPTY=",
    )


def test_the_container_overrides_the_image_and_the_last_of_a_name_wins() -> None:
    spec = ContainerSpec(name="c", envs=(("A", "mine"), ("B", "1"), ("B", "2=2")))
    assert environment(spec, IMAGE) == ("PATH=/bin", "A=mine", "EMPTY=", "B=2=2")


def test_the_working_directory_falls_back_to_the_image_and_then_to_the_root() -> None:
    user = User()
    assert process(ContainerSpec(name="c"), IMAGE, user).cwd == "/"
    assert process(ContainerSpec(name="c", working_dir="/w"), IMAGE, user).cwd == "/w"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("9", 9),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("RTMAX-1", signal.SIGRTMAX - 1),
        ("RTMIN", signal.SIGRTMIN),
    ],
)
def test_signals_by_name_and_number(name: str, number: int) -> None:
    assert signal_number(name, field="f") == number


@pytest.mark.parametrize("name", ["", "0", "65", "SIGNOPE", "RTMIN+x", "RTMAX+1", "-1", "²"])
def test_unknown_signals_are_refused_with_the_field(name: str) -> None:
    with pytest.raises(InvalidInput, match="stop_signal"):
        signal_number(name, field="stop_signal")
