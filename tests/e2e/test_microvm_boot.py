"""The distribution's kernel, put together with an agent, boots to its first process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engines.microvm.boot import assembly, clock, probe, sources
from engines.microvm.boot.settings import BootSettings
from engines.microvm.vmm.base import Accel
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.kernel import spawn

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = [pytest.mark.root, pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")]


def test_the_distributions_kernel_comes_to_its_first_process(tmp_path: Path) -> None:
    try:
        sources.find(BootSettings())
    except FailedPrecondition as error:
        pytest.skip(str(error))
    (tmp_path / "agent").write_bytes(probe.program())
    boot = assembly.assemble(BootSettings(agent=str(tmp_path / "agent")), tmp_path, Deadline.after(60))
    argv = (
        *("qemu-system-x86_64", "-M", "microvm,accel=tcg,isa-serial=on", "-cpu", "max", "-m", "128", "-no-reboot"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-kernel", boot.kernel),
        *("-initrd", boot.initrd, "-append", f"{boot.cmdline(Accel.TCG, clock.khz())} console=ttyS0"),
    )
    done = spawn.run(str(QEMU), argv, Deadline.after(60))
    assert "forgeone: this guest runs" in done.text
    assert done.code == 0
    assert {path.name for path in assembly.folder(tmp_path).iterdir()} == {boot.directory.name}
