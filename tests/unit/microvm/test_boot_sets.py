"""Boot sets: made once, checked at every use, and signed by those whom the node trusts."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from engines.microvm.boot import agent, assembly, bootset, clock, manifest, modules, probe, settings, sources
from engines.microvm.boot.problems import problems
from engines.microvm.boot.settings import BootSettings
from engines.microvm.client import Keepers
from engines.microvm.machines import Machines
from engines.microvm.settings import Settings
from engines.microvm.sizing import Size
from engines.microvm.vmm.base import Accel
from forgeone_shim.attestation import keys
from forgeone_shim.cli import main as cli
from forgeone_shim.deadline import NEVER
from forgeone_shim.errors import FailedPrecondition, PermissionDenied
from forgeone_shim.kernel import spawn
from tests.unit.microvm import boot_files as files
from tests.unit.microvm.test_boot_parts import read_cpio

Node = Callable[..., BootSettings]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Settings with a kernel's package and an agent of the test's own."""
    (tmp_path / "agent").write_bytes(files.elf() + b"agent")
    files.deb(tmp_path / "kernel.deb", files.package_files(wanted=modules.wanted("qemu")))

    def make(**given: object) -> BootSettings:
        paths = {"kernel": tmp_path / "kernel.deb", "agent": tmp_path / "agent", "boot_keys": tmp_path / "keys"}
        return replace(BootSettings(), **{name: str(path) for name, path in paths.items()}, **given)  # type: ignore[arg-type]

    return make


@pytest.fixture
def made(node: Node, tmp_path: Path) -> bootset.BootSet:
    return assembly.assemble(node(), tmp_path, NEVER)


@pytest.fixture
def alice(tmp_path: Path) -> keys.SigningKey:
    """A key that the node trusts."""
    key = keys.SigningKey.generate()
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/alice.pub").write_bytes(key.public.pem())
    return key


def test_a_boot_set_holds_the_kernel_and_an_initrd_with_the_agent_and_the_modules_in_order(
    made: bootset.BootSet,
) -> None:
    assert Path(made.kernel).read_bytes() == files.kernel()
    held = {name: (mode, data) for name, mode, _, data in read_cpio(Path(made.initrd).read_bytes())}
    assert held["init"] == (0o100755, files.elf() + b"agent")
    first = held["modules"][1].decode().split()
    listed = [*first, *held["rest"][1].decode().split()]
    assert first == [f"/lib/modules/{name}.ko" for name in modules.urgent("qemu")]
    assert listed == [f"/lib/modules/{name}.ko" for name in modules.wanted("qemu") if name != "ext4"]
    assert all(path[1:] in held for path in listed)
    assert made.manifest.release == files.RELEASE
    assert made.cmdline(Accel.TCG, 2_000_000) == f"{made.manifest.cmdline.tcg} tsc_early_khz=2000000"
    assert made.cmdline(Accel.KVM) == made.manifest.cmdline.kvm
    assert made.facts()["initrd"] == made.manifest.initrd.digest
    assert {path.name: path.stat().st_mode & 0o777 for path in made.directory.iterdir()} == {
        "kernel": 0o444,
        "initrd": 0o444,
        "manifest.json": 0o444,
    }


def test_it_is_made_once_and_anew_when_what_it_is_made_from_changed(
    made: bootset.BootSet, node: Node, tmp_path: Path
) -> None:
    assert assembly.assemble(node(), tmp_path, NEVER) == made
    (tmp_path / "agent").write_bytes(files.elf() + b"another")
    other = assembly.assemble(node(), tmp_path, NEVER)
    assert other.directory != made.directory
    assert (other.manifest.kernel, other.digest != made.digest) == (made.manifest.kernel, True)


def test_sets_that_nobody_boots_any_more_go(node: Node, tmp_path: Path) -> None:
    made = []
    for number in range(5):
        (tmp_path / "agent").write_bytes(files.elf() + bytes([number]))
        made.append(assembly.assemble(node(), tmp_path, NEVER).directory)
        os.utime(made[-1], (number, number))
    assert {path.name for path in assembly.folder(tmp_path).iterdir()} == {path.name for path in made[2:]}


def test_many_who_make_it_at_once_make_the_same(node: Node, tmp_path: Path) -> None:
    found: list[bootset.BootSet] = []
    threads = [
        threading.Thread(target=lambda: found.append(assembly.assemble(node(), tmp_path, NEVER))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len({one.directory for one in found}) == 1
    assert os.listdir(assembly.folder(tmp_path)) == [found[0].directory.name]


def test_what_was_left_half_made_is_taken_away_and_a_failure_leaves_nothing(node: Node, tmp_path: Path) -> None:
    (assembly.folder(tmp_path) / ".making-dead/set").mkdir(parents=True)
    (tmp_path / "agent").write_bytes(files.elf({3: files.INTERPRETER}))
    with pytest.raises(FailedPrecondition, match="is no static executable"):
        assembly.assemble(node(), tmp_path, NEVER)
    assert os.listdir(assembly.folder(tmp_path)) == []


def rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_file_that_is_not_what_the_manifest_says_is_refused_at_the_start_and_at_each_boot(
    made: bootset.BootSet, node: Node, tmp_path: Path
) -> None:
    assert bootset.check(made, node()) is made
    kernel = Path(made.kernel)
    held = kernel.read_bytes()
    rewrite(kernel, held.replace(b"builder", b"burglar"))
    for use in (lambda: bootset.check(made, node()), lambda: assembly.assemble(node(), tmp_path, NEVER)):
        with pytest.raises(FailedPrecondition, match="kernel is not what its manifest says"):
            use()
    rewrite(kernel, held)
    again = bootset.check(made, node())
    assert (again.digest, again.marks != made.marks) == (made.digest, True)
    kernel.unlink()
    with pytest.raises(FailedPrecondition, match="No such file"):
        bootset.check(made, node())


def test_a_daemon_makes_a_set_anew_that_was_removed_and_boots_none_that_was_changed(node: Node, tmp_path: Path) -> None:
    machines = Machines(Settings(boot=node()), tmp_path, cast("Keepers", None))
    first = machines.boot(NEVER)
    rewrite(Path(first.initrd), b"other")
    with pytest.raises(FailedPrecondition, match="initrd is not what its manifest says") as caught:
        machines.boot(NEVER)
    assert f"rm -r {first.directory} has it made anew" in caught.value.fix
    shutil.rmtree(first.directory)
    assert machines.boot(NEVER).manifest == first.manifest
    given = machines.boot(NEVER).directory.rename(tmp_path / "given")
    machines = Machines(Settings(boot=node(boot_set=str(given))), tmp_path, cast("Keepers", None))
    machines.boot(NEVER)
    shutil.rmtree(given)
    with pytest.raises(FailedPrecondition, match="given"):
        machines.boot(NEVER)


def test_a_file_that_others_can_write_is_refused(made: bootset.BootSet, node: Node) -> None:
    Path(made.initrd).chmod(0o666)
    with pytest.raises(FailedPrecondition, match=r"initrd: .*others"):
        bootset.check(made, node())


def test_a_way_to_it_that_others_could_turn_elsewhere_is_refused(made: bootset.BootSet, node: Node) -> None:
    made.directory.parent.chmod(0o777)
    with pytest.raises(FailedPrecondition, match="let none but root write there"):
        bootset.load(made.directory, node())


def test_unsigned_sets_boot_where_nothing_else_is_asked_for_and_nowhere_else(
    made: bootset.BootSet, node: Node, tmp_path: Path, alice: keys.SigningKey
) -> None:
    assert made.signers == ()
    with pytest.raises(PermissionDenied, match=r"no key in .*keys signed it, as microvm\.require_signed_boot asks"):
        assembly.assemble(node(require_signed_boot=True), tmp_path, NEVER)
    bootset.sign(made.directory, keys.SigningKey.generate())
    with pytest.raises(PermissionDenied, match="signed it"):
        bootset.check(made, node(require_signed_boot=True))
    bootset.sign(made.directory, alice)
    assert bootset.check(made, node(require_signed_boot=True)).signers == (alice.public.id,)
    assert assembly.assemble(node(), tmp_path, NEVER).signers == (alice.public.id,)


def test_a_key_that_is_taken_away_counts_no_more_at_once(
    made: bootset.BootSet, node: Node, tmp_path: Path, alice: keys.SigningKey
) -> None:
    strict = node(require_signed_boot=True)
    bootset.sign(made.directory, alice)
    found = bootset.load(made.directory, strict)
    (tmp_path / "keys/alice.pub").unlink()
    with pytest.raises(PermissionDenied, match="signed it"):
        bootset.check(found, strict)


def test_a_signature_over_something_else_is_refused_even_where_none_is_asked_for(
    made: bootset.BootSet, node: Node, alice: keys.SigningKey
) -> None:
    bootset.sign(made.directory, alice)
    path = made.directory / bootset.ENVELOPE
    good = json.loads(path.read_bytes())
    other = manifest.encode(replace_cmdline(made.manifest, "init=/bin/sh"))
    for change, message in (
        ({"payload": base64.b64encode(other).decode()}, "is not about the manifest beside it"),
        ({"payloadType": "application/json"}, "is not about the manifest beside it"),
        ({"signatures": [{"keyid": alice.public.id, "sig": "AAAA"}]}, "is not over what it holds"),
    ):
        rewrite(path, json.dumps(good | change).encode())
        with pytest.raises(PermissionDenied, match=message):
            bootset.check(made, node())
    # Nor may the manifest be another one than was signed.
    rewrite(path, json.dumps(good).encode())
    rewrite(made.directory / bootset.MANIFEST, other)
    with pytest.raises(PermissionDenied, match="is not about the manifest beside it"):
        bootset.load(made.directory, node())


def replace_cmdline(said: manifest.Manifest, line: str) -> manifest.Manifest:
    return manifest.decode(
        manifest.encode(said).replace(said.cmdline.kvm.encode() + b'"', line.encode() + b'"', 1), "x"
    )


def test_a_directory_of_ones_own_is_taken_as_it_is(made: bootset.BootSet, tmp_path: Path) -> None:
    own = made.directory.rename(tmp_path / "own")
    asked = BootSettings(boot_set=str(own), boot_keys=str(tmp_path / "keys"))
    assert assembly.assemble(asked, tmp_path / "elsewhere", NEVER).directory == own
    assert not (tmp_path / "elsewhere").exists()


KEYS = st.sampled_from(["format", "release", "kernel", "digest", "size", "cmdline", "kvm"])
DOCUMENTS = st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.dictionaries(KEYS, inner))


@given(st.binary() | DOCUMENTS.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(FailedPrecondition, match="x is no boot manifest"):
        manifest.decode(data, "x")


def test_a_manifest_has_one_form(made: bootset.BootSet) -> None:
    data = (made.directory / bootset.MANIFEST).read_bytes()
    assert manifest.encode(manifest.decode(data, "x")) == data
    for other in (data + b"\n", data.replace(b'"format":1', b'"format":1,"more":1'), data.replace(b":", b": ", 1)):
        with pytest.raises(FailedPrecondition, match="x is no boot manifest"):
            manifest.decode(other, "x")
    with pytest.raises(FailedPrecondition, match="larger than"):
        manifest.decode(bytes(manifest.MAX_MANIFEST + 1), "x")


def test_the_agent_is_compiled_static_and_the_same_wherever_its_sources_are(tmp_path: Path) -> None:
    images = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "main.c").write_text('#include "a.h"\nint main(void) { return __FILE__[0] == CODE; }\n')
        (tmp_path / name / "a.h").write_text("#include <linux/fuse.h>\n#define CODE 3\n")
        found = agent.sources(tmp_path / name)
        images.append((found.digest, agent.build(found, tmp_path / name, NEVER)))
    assert images[0] == images[1]
    (tmp_path / "one/a.h").write_text("int")
    found = agent.sources(tmp_path / "one")
    assert found.digest != images[0][0]
    with pytest.raises(FailedPrecondition, match=r"the guest's agent cannot be compiled: (.|\n)*error"):
        agent.build(found, tmp_path, NEVER)


def qemu(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\necho x >>{path}.ran\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has a /dev/kvm, whatever it is worth, and whose clock is known."""
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(probe, "_KVM", tmp_path / "kvm")
    monkeypatch.setattr(probe, "_PATIENCE", 0.5)
    monkeypatch.setattr(clock, "khz", lambda: 2_500_000)


@pytest.mark.parametrize(
    ("script", "accel", "why"),
    [
        ("printf 'Booting\\nforgeone: this guest runs\\r\\n'", Accel.KVM, ""),
        ("exec sleep 60", Accel.TCG, "did not come to its first process in 0.5 s"),
        ("echo could not access KVM; exit 1", Accel.TCG, "could not access KVM"),
        ("exit 3", Accel.TCG, "QEMU exited with 3"),
    ],
)
def test_kvm_is_used_where_a_guest_was_seen_to_boot_by_it_which_is_tried_once(
    made: bootset.BootSet, node: Node, tmp_path: Path, kvm: None, script: str, accel: Accel, why: str
) -> None:
    asked = node(qemu=qemu(tmp_path / "qemu", script))
    for _ in range(2):
        found = probe.processor(asked, made, tmp_path, NEVER)
        assert (found.accel, found.khz) == (accel, 0 if accel is Accel.KVM else 2_500_000)
        assert why in found.why
    assert (tmp_path / "qemu.ran").read_text() == "x\n"
    probe.processor(asked, made, tmp_path, NEVER, anew=True)
    assert (tmp_path / "qemu.ran").read_text() == "x\nx\n"
    qemu(tmp_path / "qemu", f"{script} # another version")
    probe.processor(asked, made, tmp_path, NEVER)
    assert (tmp_path / "qemu.ran").read_text() == "x\nx\nx\n"


def test_a_daemon_says_why_its_machines_are_emulated(node: Node, tmp_path: Path, kvm: None) -> None:
    asked = Settings(boot=node(qemu=qemu(tmp_path / "qemu", "echo could not access KVM; exit 1")))
    machines = Machines(asked, tmp_path, cast("Keepers", None))
    with capture_logs() as said:
        for _ in range(2):
            assert machines.machine(Size(memory=128 << 20, vcpus=1), NEVER).accel is Accel.TCG
    assert [one["event"] for one in said] == ["machines are emulated"]
    assert "could not access KVM" in said[0]["why"]


def test_what_was_asked_for_is_used_or_refused(
    made: bootset.BootSet, node: Node, tmp_path: Path, kvm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = qemu(tmp_path / "qemu", "exit 1")
    tcg = probe.processor(node(qemu=program, accel="tcg"), made, tmp_path, NEVER)
    assert (tcg.accel, (tmp_path / "qemu.ran").exists()) == (Accel.TCG, False)
    with pytest.raises(FailedPrecondition, match=r"microvm\.accel is kvm, but a guest .* ended"):
        probe.processor(node(qemu=program, accel="kvm"), made, tmp_path, NEVER)
    monkeypatch.setattr(probe, "_KVM", tmp_path / "nowhere")
    assert "this host has no" in probe.processor(node(qemu=program), made, tmp_path, NEVER, anew=True).why
    with pytest.raises(FailedPrecondition, match="nothing-like-it is not installed"):
        probe.processor(node(qemu="nothing-like-it"), made, tmp_path, NEVER)


@pytest.mark.parametrize("vmm", ["firecracker", "cloud-hypervisor"])
def test_monitors_that_need_kvm_boot_other_modules_and_nothing_without_it(
    made: bootset.BootSet, node: Node, tmp_path: Path, kvm: None, monkeypatch: pytest.MonkeyPatch, vmm: str
) -> None:
    files.deb(tmp_path / "kernel.deb", files.package_files(wanted=(*modules.wanted("qemu"), *modules.wanted(vmm))))
    other = assembly.assemble(node(vmm=vmm), tmp_path, NEVER)
    assert b"virtio_blk.ko" in Path(other.initrd).read_bytes()
    assert b"virtio_scsi.ko" not in Path(other.initrd).read_bytes()
    found = probe.processor(node(vmm=vmm, qemu="nothing-like-it"), other, tmp_path, NEVER)
    assert (found.accel, found.khz) == (Accel.KVM, 0)
    monkeypatch.setattr(probe, "_KVM", tmp_path / "nowhere")
    for accel in ("auto", "kvm"):
        with pytest.raises(FailedPrecondition, match=f"is {vmm}, which needs KVM"):
            probe.processor(node(vmm=vmm, accel=accel), other, tmp_path, NEVER)


def test_the_hosts_counter_is_measured_or_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = clock.khz(), clock.khz()
    assert abs(first - second) < first / 1000

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "no memory is executable here")

    monkeypatch.setattr(clock.mmap, "mmap", refuse)
    assert clock.khz() > 0


def test_problems_name_the_key_or_the_command_that_mends_them(
    node: Node, made: bootset.BootSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert problems(node(qemu="sh")) == []
    monkeypatch.setattr(sources, "BOOT", tmp_path / "none")
    monkeypatch.setattr(spawn, "find_program", lambda _: None)
    found = problems(BootSettings(kernel="/nowhere", boot_keys=str(tmp_path / "keys")))
    assert [problem.fix for problem in found] == [
        "apt-get install -y qemu-system-x86",
        "",
        "apt-get install -y gcc linux-libc-dev musl-tools",
    ]
    assert not any(problem.fatal for problem in found)
    rewrite(Path(made.initrd), b"other")
    (found_of_set,) = problems(BootSettings(qemu="sh", boot_set=str(made.directory), boot_keys="/nowhere"))[1:]
    assert "initrd is not what its manifest says" in found_of_set.what
    (nothing,) = problems(BootSettings(qemu="sh", boot_set="/nowhere", boot_keys="/nowhere"))[1:]
    assert "/nowhere: No such file or directory" in nothing.what


@pytest.fixture
def forge(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    asked = node(accel="tcg", qemu="sh")
    names = ("accel", "qemu", "kernel", "agent", "boot_keys")
    lines = "".join(f'{name} = "{getattr(asked, name)}"\n' for name in names)
    (tmp_path / "config.toml").write_text(f'root = "{tmp_path}/root"\n[microvm]\n{lines}')
    monkeypatch.setenv("FORGEONE_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.chdir(tmp_path)
    yield lambda *words: cli.main(["microvm", *words])


def test_an_operator_builds_signs_and_verifies_for_other_nodes(
    forge: Callable[..., int], tmp_path: Path, alice: keys.SigningKey, capsys: pytest.CaptureFixture[str]
) -> None:
    alice.save(tmp_path / "alice.key")
    assert forge("build", "--output-dir", "out") == 0
    assert forge("verify", "out") == 1
    assert "none of the keys in" in capsys.readouterr().err
    assert forge("sign", "--key", "alice.key", "out") == 0
    assert forge("verify", "out", "-o", "json") == 0
    said = json.loads(capsys.readouterr().out.split("\n", 2)[2])
    assert (said["signed by"], said["release"]) == (alice.public.id, files.RELEASE)
    (tmp_path / "bob.pub").write_bytes(keys.SigningKey.generate().public.pem())
    assert forge("verify", "--trust", "bob.pub", "out") == 1
    assert forge("build", "--output-dir", "out") == 1
    assert "out exists" in capsys.readouterr().err


def test_an_operator_sees_what_machines_boot(
    forge: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert forge("status") == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (shown["accel"], shown["why"]) == ("tcg", "microvm.accel is tcg")
    assert "tsc_early_khz=" in shown["cmdline"]
    assert Path(shown["directory"]).parent == tmp_path / "root/microvm/boot"


def test_settings_take_what_is_theirs_of_the_section() -> None:
    assert settings.read({"kernel": "/k", "memory": 1}) == BootSettings(kernel="/k")
