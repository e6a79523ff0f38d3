"""What the bundle's build decides: which libraries, which bytes instead of which, which unit."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.microvm.boot import agent, sources
from engines.microvm.boot.settings import BootSettings
from forgeone_shim.errors import FailedPrecondition, InternalError, InvalidInput
from hack.bundle import __main__ as command
from hack.bundle import blind, build, deb, debian, layout, programs, python
from hack.bundle.artifacts import Stamp
from hack.bundle.commands import run

AMD64, ARM64 = layout.arch("amd64"), layout.arch("arm64")
NEEDS = {"liba": ("libb", "libc"), "libb": ("libc",), "libc": ("ld",), "ld": (), "libcycle": ("libcycle", "libb")}


def closure(*names: str) -> tuple[str, ...]:
    return programs.closure({"bin/program": names}, NEEDS.__contains__, NEEDS.__getitem__)


def test_libraries_of_libraries_are_needed_too() -> None:
    assert closure("liba") == ("ld", "liba", "libb", "libc")


def test_libraries_may_need_each_other() -> None:
    assert closure("libcycle") == ("ld", "libb", "libc", "libcycle")


def test_a_library_that_cannot_be_had_is_named_with_who_needs_it() -> None:
    with pytest.raises(FailedPrecondition, match=r"libb needs libz"):
        programs.closure({"bin/program": ("libb",)}, {"libb"}.__contains__, {"libb": ("libz",)}.__getitem__)


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"))))
def test_a_closure_holds_what_each_of_it_needs(needs: dict[str, list[str]]) -> None:
    found = programs.closure({"root": tuple("ab")}, lambda _: True, lambda name: needs.get(name, []))
    assert {"a", "b"} <= set(found)
    assert all(set(needs.get(name, [])) <= set(found) for name in found)


@pytest.mark.parametrize("arch", [AMD64, ARM64], ids=lambda arch: arch.debian)
def test_paths_are_replaced_by_others_as_long_that_no_host_can_have(arch: layout.Arch) -> None:
    for name, pairs in blind.replacements(arch).items():
        content = b"before\0" + b"\0".join(old for old, _ in pairs) + b"\0behind"
        changed = blind.blinded(name, content, arch)
        assert len(changed) == len(content)
        for old, new in pairs:
            assert old not in changed
            for path in new.strip(b"\0").split(b"\0"):
                assert path.startswith((b"/dev/null/", b"/sys/"))


def test_pip_is_told_of_what_wheels_are_made_for_and_libc_can_run() -> None:
    assert python.platform_tags(28, "x86_64") == [
        *(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 26, 25, 24, 17, 12, 5)),
        "manylinux2014_x86_64",
    ]
    assert python.platform_tags(36, "aarch64")[:2] == ["manylinux_2_36_aarch64", "manylinux_2_34_aarch64"]


def package(root: Path, name: str) -> debian.Package:
    tree = root / name
    (tree / "usr/share/doc").mkdir(parents=True)
    return debian.Package(name, "1", name, tree)


def test_a_package_may_have_its_licence_in_another_and_none_may_have_none(tmp_path: Path) -> None:
    base, library, other = (package(tmp_path, name) for name in ("base", "library", "other"))
    (base.tree / "usr/share/doc/base").mkdir()
    (base.tree / "usr/share/doc/base/copyright").touch()
    (library.tree / "usr/share/doc/library").symlink_to("base")
    files = debian.Files((base, library, other), AMD64.multiarch)
    assert files.license(library) == files.license(base) == base.tree / "usr/share/doc/base/copyright"
    with pytest.raises(FailedPrecondition, match="other has no copyright"):
        files.license(other)
    with pytest.raises(FailedPrecondition, match="base is not among"):
        debian.Files((library,), AMD64.multiarch).license(library)


def test_a_source_is_named_with_its_version_where_that_differs() -> None:
    assert debian.told("libc6\t2.36-9\tglibc\t2.36-9\n") == ("libc6", "2.36-9", "glibc")
    assert debian.told("crun\t1.8-1+b1\tcrun\t1.8-1") == ("crun", "1.8-1+b1", "crun@1.8-1")


def test_a_release_that_has_a_path_elsewhere_is_refused() -> None:
    with pytest.raises(InternalError, match=r"ld\.so\.cache"):
        blind.blinded(AMD64.loader, b"nothing", AMD64)


def test_a_library_that_follows_no_path_stays_as_it_is() -> None:
    assert blind.blinded("libz.so.1", b"/etc/ld.so.cache", AMD64) == b"/etc/ld.so.cache"


def test_the_unit_is_of_its_version_and_of_no_checkout() -> None:
    text = build.unit((layout.REPOSITORY / "hack/systemd/forgeoned.service").read_text(), "1.2.3")
    assert "ExecStart=/opt/forgeone/versions/1.2.3/bin/forgeoned\n" in text
    assert "ExecReload=/opt/forgeone/versions/1.2.3/bin/forge reload\n" in text
    assert "Documentation=file:/opt/forgeone/versions/1.2.3/share/doc/operate.md\n" in text
    assert ".venv" not in text
    assert "make setup" not in text


def test_what_the_bundle_has_for_machines_comes_before_the_hosts_and_after_the_configurations(tmp_path: Path) -> None:
    ready, boot, lib = tmp_path / "kernel.deb", tmp_path / "boot", tmp_path / "lib"
    (lib / "6.1.0").mkdir(parents=True)
    (lib / "6.1.0" / "modules.builtin").touch()
    boot.mkdir()
    (boot / "vmlinuz-6.1.0").touch()

    def find(settings: BootSettings) -> sources.Installed | sources.Package:
        return sources.find(settings, ready=ready, boot=boot, modules=lib, packages=tmp_path / "none")

    assert isinstance(find(BootSettings()), sources.Installed)
    ready.touch()
    assert find(BootSettings()) == sources.Package(ready)
    named = tmp_path / "named.deb"
    named.touch()
    assert find(BootSettings(kernel=str(named))) == sources.Package(named)


def test_a_compiled_agent_is_compiled_no_more(tmp_path: Path) -> None:
    ready = tmp_path / "agent"
    assert agent.find("/named", ready) == Path("/named")
    assert agent.find("", ready) == agent.sources()
    ready.touch()
    assert agent.find("", ready) == ready


@pytest.mark.parametrize(
    ("flavour", "package", "others"),
    [
        (layout.STANDARD, "forgeone", ["Conflicts: forgeone-microvm", "Replaces: forgeone-microvm"]),
        (layout.MICROVM, "forgeone-microvm", ["Conflicts: forgeone", "Provides: forgeone (= 1.2.3)"]),
    ],
)
def test_packages_of_either_flavour_stand_in_for_each_other(
    flavour: str, package: str, others: list[str], tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    (root / layout.UNIT).parent.mkdir(parents=True)
    (root / layout.UNIT).write_text("[Unit]\n")
    made = tmp_path / "made.deb"
    deb.write(root, made, Stamp("1.2.3", AMD64, 0, flavour))
    said = run(["dpkg-deb", "--field", made])
    assert said.startswith(f"Package: {package}\nVersion: 1.2.3\nArchitecture: amd64\n")
    assert [line for line in others if f"{line}\n" not in said] == []
    listed = run(["dpkg-deb", "--contents", made])
    assert "./usr/bin/forge -> /opt/forgeone/versions/1.2.3/bin/forge\n" in listed
    assert "./etc/forgeone/config.toml\n" in listed


def test_bundles_are_made_for_processors_that_are_known() -> None:
    with pytest.raises(FailedPrecondition, match="riscv64"):
        layout.arch("riscv64")


@pytest.mark.parametrize("given", ["", "-1", "1.5", "now", "١"])
def test_the_time_of_all_files_is_a_number_of_seconds(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", given)
    with pytest.raises(InvalidInput, match="SOURCE_DATE_EPOCH"):
        command.epoch()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert command.epoch() == 1_700_000_000


def test_what_a_killed_build_left_goes_and_one_builds_at_a_time(tmp_path: Path) -> None:
    (tmp_path / ".bundle-killed" / "tree").mkdir(parents=True)
    (tmp_path / "forgeone-1.tar.gz").touch()
    with command.workplace(tmp_path) as work:
        assert {path.name for path in tmp_path.iterdir()} == {work.name, "forgeone-1.tar.gz"}
        with pytest.raises(FailedPrecondition, match="another build"), command.workplace(tmp_path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["forgeone-1.tar.gz"]


def test_the_projects_commands_can_be_scripts_of_the_bundle() -> None:
    declared = tomllib.loads((layout.REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    assert {"forge", "forgeoned"} <= set(declared)
    for name, target in declared.items():
        module, _, function = target.partition(":")
        assert function.isidentifier(), name
        assert (layout.REPOSITORY / Path(*module.split("."))).with_suffix(".py").exists(), name
