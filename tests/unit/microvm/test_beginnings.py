"""From what a pod's machine begins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from engines.microvm.boot.settings import BootSettings
from engines.microvm.client import Keepers
from engines.microvm.keeper.orders import Driver, Launch, Launched, Monitor
from engines.microvm.machines import Machines
from engines.microvm.plans import GUEST
from engines.microvm.sandboxes import Sandboxes
from engines.microvm.settings import Settings
from engines.microvm.vmm.base import Accel, Confinement, Machine, Template
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import InternalError

ASKED = Launch(
    sandbox_id="s",
    directory="/s",
    monitor=Monitor(driver=Driver.QEMU, program="/qemu"),
    machine=Machine(memory=128 << 20, vcpus=1, accel=Accel.TCG, kernel="/k", initrd="/i", cmdline="", ports=()),
    who=Confinement(uid=1, gid=1, cgroups=()),
    cgroups=(),
    seconds=60,
)


class Made:
    """Machines with a template and keepers; ``fails`` are the launches that do not succeed."""

    def __init__(self, fails: set[str]) -> None:
        self._fails = fails
        self.steps: list[str] = []

    @contextlib.contextmanager
    def template(self, _machine: Machine, _deadline: Deadline) -> Iterator[Template]:
        yield Template(memory=-1, state=-1)

    def spoiled(self, _machine: Machine, _deadline: Deadline) -> None:
        self.steps.append("spoiled")

    def launch(
        self,
        _asked: Launch,
        _deadline: Deadline,
        *,
        tap: int = -1,
        template: Template | None = None,
    ) -> Launched | None:
        step = "boot" if template is None else "clone"
        self.steps.append(step)
        if step in self._fails:
            raise InternalError("no")
        return None


def begun(made: Made, tmp_path: Path) -> None:
    found = Sandboxes(GUEST, cast(Keepers, made), cast(Machines, made), tmp_path)
    found._launch(ASKED, -1, NEVER)


def test_a_template_that_nothing_begins_from_is_made_anew(tmp_path: Path) -> None:
    made = Made({"clone"})
    begun(made, tmp_path)
    assert made.steps == ["clone", "boot", "spoiled"]


def test_a_pod_that_could_not_begin_anyhow_does_not_cost_others_their_template(tmp_path: Path) -> None:
    made = Made({"clone", "boot"})
    with pytest.raises(InternalError):
        begun(made, tmp_path)
    assert made.steps == ["clone", "boot"]


def test_a_monitor_that_was_installed_anew_is_another_one(tmp_path: Path) -> None:
    program = tmp_path / "qemu"

    def install(version: str) -> None:
        draft = tmp_path / "draft"
        draft.write_text(f"#!/bin/sh\necho {version}; echo more\n")
        draft.chmod(0o755)
        draft.replace(program)

    install("7.2.1")
    made = Machines(Settings(boot=BootSettings(qemu=str(program))), tmp_path, cast(Keepers, None))
    first = made._known(NEVER)
    assert made.version(NEVER) == "7.2.1"
    # The same version, built anew.
    install("7.2.1")
    assert made._known(NEVER) != first
    install("10.0.2")
    assert made.version(NEVER) == "10.0.2"
    made.close()


def test_a_pod_of_which_nothing_can_be_read_any_more_can_be_removed(tmp_path: Path) -> None:
    found = Sandboxes(GUEST, cast(Keepers, None), cast(Machines, None), tmp_path)
    found.place("s").mkdir(parents=True)
    (found.place("s") / "machine.json").touch()
    with pytest.raises(InternalError, match="not as known"):
        found.read("s")
    found.remove("s", "/pods/none")
    assert not found.place("s").exists()
