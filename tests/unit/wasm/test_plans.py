from __future__ import annotations

from typing import Any

import pytest

from engines.base import Device, Edits, NodeEdit, Resources, Security
from engines.wasm import commands, modules, plans
from engines.wasm.annotations import Asked
from engines.wasm.aot.target import Kind, Variant
from engines.wasm.card import Identity, Limits
from engines.wasm.guest.plan import GuestPlan, Preopen
from engines.wasm.jail.plan import JailPlan
from engines.wasm.messages import Code
from engines.wasm.notes import Note
from forgeone_shim.errors import FailedPrecondition, InvalidInput, Unimplemented
from tests.unit.wasm.planning import plan


def _guest(*args: str, asked: Asked | None = None, **more: Any) -> GuestPlan:
    of = plan(*args, **more)
    return plans.guest(of, asked or Asked(), modules.wanted(of.process.args, of.process.env, of.process.cwd, of.module))


def test_a_guest_has_its_arguments_and_all_files_and_begins_in_its_working_directory() -> None:
    found = _guest("/app.wasm", "a", "b", env=("A=1", "B=2"), cwd="/srv/")
    assert found.argv == ("/app.wasm", "a", "b")
    assert found.env == ("HOSTNAME=pod", "A=1", "B=2", "HOME=/")
    assert found.preopens == (Preopen(path="/srv", name="."), Preopen(path="/", name="/"))
    assert (found.function, found.memory_max, found.cpu_budget) == ("", 0, 0)


def test_the_function_is_no_part_of_the_name() -> None:
    found = _guest("/app.wasm#add", "1", "2")
    assert (found.argv, found.function) == (("/app.wasm", "1", "2"), "add")
    assert _guest("x#wasi:cli/run#run", module="/m.wasm").function == "wasi:cli/run#run"
    assert _guest(module="/m.wasm").argv == ("/m.wasm",)


@pytest.mark.parametrize(("annotation", "limit", "expected"), [(0, 0, 0), (0, 64, 64), (32, 64, 32), (128, 64, 128)])
def test_an_annotation_goes_before_the_memory_limit(annotation: int, limit: int, expected: int) -> None:
    found = _guest("/a", asked=Asked(memory_max=annotation), resources=Resources(memory_limit=limit))
    assert found.memory_max == expected


def test_a_budget_needs_metered_code() -> None:
    assert plans.variant(Asked()) is Variant.PLAIN
    assert plans.variant(Asked(cpu_budget=0.5)) is Variant.METERED
    assert _guest("/a", asked=Asked(cpu_budget=0.5)).cpu_budget == 500_000


def test_of_variables_the_last_one_counts() -> None:
    found = _guest("/a", env=("HOSTNAME=mine", "A=1", "A=2", "HOME=/h", "empty"), tty=True)
    assert found.env == ("HOSTNAME=mine", "TERM=xterm", "A=2", "HOME=/h")
    with pytest.raises(InvalidInput):
        _guest("/a", env=("=x",))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"security": Security(privileged=True)}, "privileged"),
        ({"security": Security(add_capabilities=("NET_ADMIN",))}, "capabilities"),
        ({"devices": (Device("/dev/fuse", "/dev/fuse"),)}, "devices"),
        ({"edits": Edits(nodes=(NodeEdit(path="/dev/x", host_path="/dev/x"),))}, "CDI"),
        ({"rdt_class": "gold"}, "RDT"),
    ],
)
def test_what_a_guest_cannot_have_is_refused_with_the_reason(changes: dict[str, Any], named: str) -> None:
    plans.check(plan("/a"))
    with pytest.raises(FailedPrecondition, match=named):
        plans.check(plan("/a", **changes))


def test_a_guest_may_know_who_it_is_and_what_it_may_use() -> None:
    resources = Resources(memory_limit=1 << 28, cpu_quota=-1, cpu_period=100_000, cpu_shares=512)
    asked = Asked(cpu_budget=1.5, memory_max=1 << 20, trace=True)
    of = plan("/a", resources=resources)
    found = plans.insight(of, asked, _guest("/a", asked=asked, resources=resources), Kind.COMPONENT)
    assert found.identity == Identity(of.container_id, of.spec.name, of.sandbox_id)
    assert found.limits == Limits(memory=1 << 28, linear_memory=1 << 20, cpu_shares=512, cpu_budget=1_500_000_000), (
        "a quota below zero is none"
    )
    assert (found.bundle, found.trace) == (of.bundle, True)
    updated = plans.limits(Resources(memory_limit=5, cpu_quota=7, cpu_period=9), found.limits)
    assert updated == Limits(memory=5, linear_memory=1 << 20, cpu_quota=7, cpu_period=9, cpu_budget=1_500_000_000), (
        "what the guest was created with stays"
    )


def _note(*exports: str) -> Note:
    return Note(
        log_path="",
        image_id="",
        code=Code("k", Kind.MODULE, Variant.PLAIN),
        module="/app.wasm",
        exports=exports,
        guest=_guest("/app.wasm", "serve", env=("PATH=/bin",), cwd="/srv"),
        insight=plans.insight(plan("/app.wasm"), Asked(), _guest("/app.wasm"), Kind.MODULE),
        jail=JailPlan(rootfs="/r", uid=0, gid=0, filters=(), cwd="/srv"),
    )


def test_an_exec_names_an_export_of_the_annotation() -> None:
    found = commands.choose(("check", "7"), _note("check"))
    assert found.module.candidates == ("/app.wasm",)
    assert (found.guest.function, found.guest.argv, found.guest.env) == ("check", ("check", "7"), _note().guest.env)


def test_an_exec_names_a_module() -> None:
    found = commands.choose(("/tools/t.wasm#f", "7"), _note("check"))
    assert found.module.candidates == ("/tools/t.wasm",)
    assert (found.guest.function, found.guest.argv, found.certain) == ("f", ("/tools/t.wasm", "7"), True)
    assert commands.choose(("t.wasm",), _note()).module.candidates == ("/bin/t.wasm", "/srv/t.wasm")
    assert not commands.choose(("./t",), _note()).certain


@pytest.mark.parametrize("command", ["sh", "check", "env"])
def test_any_other_command_is_unimplemented(command: str) -> None:
    with pytest.raises(Unimplemented, match=f"'{command}'.*wasm.forgeone.dev/exec"):
        commands.choose((command,), _note("other"))


@pytest.mark.parametrize("argv", [(), ("",), ("a\0",)])
def test_no_command_is_refused(argv: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput):
        commands.choose(argv, _note())


@pytest.mark.parametrize(
    ("asked", "watched", "kind", "traced"),
    [
        (False, False, Kind.MODULE, False),
        (False, True, Kind.MODULE, True),
        # What it asks of the kernel is watched all the same.
        (False, True, Kind.COMPONENT, False),
        # Whoever asks for it is told why it cannot be.
        (True, False, Kind.COMPONENT, True),
    ],
)
def test_calls_of_a_watched_module_are_recorded(*, asked: bool, watched: bool, kind: Kind, traced: bool) -> None:
    of = plan("/app.wasm", watched=watched)
    assert plans.insight(of, Asked(trace=asked), _guest("/app.wasm"), kind).trace is traced
