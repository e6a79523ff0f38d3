"""QEMU's command line, and the filter in front of it."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.microvm import settings
from engines.microvm.vmm import filter as seccomp
from engines.microvm.vmm import view
from engines.microvm.vmm.base import Accel, Machine
from engines.microvm.vmm.qemu.arguments import Boot, Descriptors, arguments
from engines.microvm.vmm.view import View

_MACHINE = Machine(
    memory=256 << 20,
    vcpus=2,
    accel=Accel.TCG,
    kernel="/host/kernel",
    initrd="/host/initrd",
    cmdline="quiet panic=-1",
    ports=("forgeone.control", "forgeone.share"),
)
_FDS = Descriptors(monitor=3, tap=6, ports=(4, 5))
_BOOT = Boot(kernel="/files/kernel", initrd="/files/initrd")


def words(machine: Machine = _MACHINE, fds: Descriptors = _FDS, boot: Boot | None = _BOOT) -> list[str]:
    return arguments("/usr/bin/qemu", machine, fds, boot, "on")


def option(given: list[str], name: str) -> list[str]:
    return [value for word, value in pairwise(given) if word == name]


def test_no_path_of_the_host_is_told() -> None:
    assert not any("/host/" in word for word in words())


def test_a_machine_with_its_own_memory_has_it_in_no_file() -> None:
    (memory,) = option(words(), "-object")
    assert memory == f"memory-backend-ram,id=m0,size={256 << 20}"


def test_a_template_is_saved_from_a_file_and_clones_map_it_privately() -> None:
    fds = dataclasses.replace(_FDS, memory=7)
    (saved,), (cloned,) = option(words(fds=fds), "-object"), option(words(fds=fds, boot=None), "-object")
    assert saved.endswith("mem-path=/proc/self/fd/7,share=on")
    assert cloned == saved.replace("share=on", "share=off")


def test_a_clone_has_the_devices_of_its_template_in_their_order() -> None:
    template, clone = words(), words(boot=None)
    for name in ("-M", "-accel", "-cpu", "-smp", "-m", "-device", "-global", "-netdev"):
        assert option(clone, name) == option(template, name), name
    assert not option(clone, "-kernel") and not option(clone, "-append")
    assert option(clone, "-incoming") == ["defer"]


def test_every_port_has_its_descriptor_and_name() -> None:
    given = words()
    assert option(given, "-chardev")[1:] == ["socket,id=port0,fd=4", "socket,id=port1,fd=5"]
    named = [device for device in option(given, "-device") if device.startswith("virtserialport")]
    assert [device.rpartition("=")[2] for device in named] == list(_MACHINE.ports)


@pytest.mark.parametrize("boot", [_BOOT, None])
def test_nothing_runs_before_it_is_told_to(boot: Boot | None) -> None:
    assert "-S" in words(boot=boot)
    assert "-no-reboot" in words(boot=boot) and "-nodefaults" in words(boot=boot)


def test_memory_is_given_back_only_where_it_is_reclaimed() -> None:
    reporting = lambda given: next(one for one in option(given, "-device") if "balloon" in one)  # noqa: E731
    assert "free-page-reporting=on" in reporting(words())
    assert "free-page-reporting=off" in reporting(words(dataclasses.replace(_MACHINE, reclaim=False)))


def test_a_guest_that_counts_on_what_is_in_free_pages_reports_none() -> None:
    balloon = next(one for one in option(words(), "-device") if "balloon" in one)
    assert "page-poison=off" in balloon.split(",")


def test_kvm_shows_the_hosts_processor() -> None:
    given = words(dataclasses.replace(_MACHINE, accel=Accel.KVM))
    assert (option(given, "-accel"), option(given, "-cpu")) == (["kvm"], ["host"])


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({}, 0),
        ({"writable_layer_size": 5}, 0),
        ({"writable_layer": "disk"}, 10 << 30),
        ({"writable_layer": "disk", "writable_layer_size": 5}, 5),
    ],
)
def test_a_machine_may_write_to_disks_where_layers_are_on_disk(given: dict[str, object], size: int) -> None:
    assert settings.read({"microvm": given}).disk_size == size


# -- the files it is loaded from


@pytest.mark.parametrize(
    ("program", "home"),
    [
        ("/usr/bin/qemu", None),
        ("/opt/qemu/bin/qemu", "/opt/qemu"),
        ("/opt/qemu/libexec/qemu", "/opt/qemu/libexec/qemu"),
        ("/opt/qemu", "/opt/qemu"),
        ("/qemu", "/qemu"),
        ("/opt/bin/qemu", "/opt"),
    ],
)
def test_of_a_program_of_ones_own_no_more_is_seen_than_lies_beside_it(program: str, home: str | None) -> None:
    found = view.sources(View(files={"kernel": "/boot/kernel"}), program)
    assert found["kernel"] == "/boot/kernel"
    own = {path for name, path in found.items() if name.partition("/")[0] in ("opt", "qemu")}
    assert own == ({home} if home is not None else set())
    assert "/" not in found.values() and "" not in found


# -- the filter, by the rules of linux/filter.h for the instructions in it

_X86_64, _I386 = 0xC000003E, 0x40000003
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_REFUSED = _ERRNO | errno.EPERM


def judge(program: bytes, number: int, *arguments: int, arch: int = _X86_64) -> int:
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", program))
    at = value = 0
    while True:
        kind, yes, no, constant = code[at]
        at += 1
        match kind:
            case 0x20:
                value = struct.unpack_from("<I", data, constant)[0]
            case 0x15:
                at += yes if value == constant else no
            case 0x35:
                at += yes if value >= constant else no
            case 0x45:
                at += yes if value & constant else no
            case 0x06:
                return constant
            case _:
                raise AssertionError(kind)


@pytest.mark.parametrize("keep_holes", [True, False])
@given(number=st.integers(min_value=0, max_value=600))
def test_what_is_denied_is_denied_and_nothing_else(keep_holes: bool, number: int) -> None:
    denied = number in seccomp.DENIED.values()
    expected = _ERRNO | errno.ENOSYS if number == 435 else _REFUSED if denied else _ALLOW
    assert judge(seccomp.program(keep_holes=keep_holes), number, 0, 1) == expected


def test_other_tables_of_system_calls_are_not_had() -> None:
    program = seccomp.program(keep_holes=True)
    assert judge(program, 0, arch=_I386) == _KILL
    assert judge(program, 0x4000_0000 | 59) == _REFUSED


def test_a_hole_is_pretended_for_clones_alone() -> None:
    fallocate, keep_size, punch, zero = 285, 1, 2, 16
    program = seccomp.program(keep_holes=True)
    assert judge(program, fallocate, 9, keep_size | punch) == _ERRNO
    assert judge(program, fallocate, 9, keep_size | zero) == _ALLOW
    assert judge(program, fallocate, 9, 0) == _ALLOW
    assert judge(seccomp.program(keep_holes=False), fallocate, 9, keep_size | punch) == _ALLOW


@pytest.mark.parametrize("keep_holes", [True, False])
def test_a_thread_has_no_namespaces_of_its_own_and_nobody_outlives_the_keeper(keep_holes: bool) -> None:
    clone, prctl, program = 56, 157, seccomp.program(keep_holes=keep_holes)
    # As the C library makes a thread.
    thread = 0x3D0F00
    assert judge(program, clone, thread) == _ALLOW
    # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert judge(program, clone, thread | flag) == _REFUSED, hex(flag)
    set_death_signal, set_name = 1, 15
    assert judge(program, prctl, set_death_signal, 0) == _REFUSED
    assert judge(program, prctl, set_name, 0) == _ALLOW


def test_numbers_are_those_of_libseccomp() -> None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("there is no libseccomp on this host")
    unknown = -1
    for name, number in seccomp.DENIED.items():
        # SCMP_ARCH_X86_64
        found = library.seccomp_syscall_resolve_name_arch(0xC000003E, name.encode())
        assert found in (number, unknown), name
