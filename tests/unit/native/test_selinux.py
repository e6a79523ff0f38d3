"""What the host's SELinux policy says, and what is never labelled."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, InternalError, PermissionDenied
from forgeone_shim.kernel import selinux
from forgeone_shim.kernel.selinux import Context, detect, relabel

CONTEXTS = """\
# comment
process = "system_u:system_r:container_t:s0"
content = "system_u:object_r:virt_var_lib_t:s0"
file = "system_u:object_r:container_file_t:s0"
ro_file="system_u:object_r:container_ro_file_t:s0"
"""


def host(directory: Path, contexts: str = CONTEXTS, kind: str = "targeted") -> tuple[Path, Path]:
    """A selinuxfs and an /etc/selinux."""
    filesystem, etc = directory / "fs", directory / "etc"
    filesystem.mkdir()
    (filesystem / "enforce").write_text("1")
    (etc / "targeted" / "contexts").mkdir(parents=True)
    (etc / "config").write_text(f"# SELINUXTYPE=mls\nSELINUX=enforcing\nSELINUXTYPE={kind}\n")
    (etc / "targeted" / "contexts" / "lxc_contexts").write_text(contexts)
    return filesystem, etc


def test_the_policy_s_labels_for_containers_are_found(tmp_path: Path) -> None:
    found = detect(*host(tmp_path))
    assert found is not None
    assert str(found.process) == "system_u:system_r:container_t:s0"
    assert str(found.file) == "system_u:object_r:container_file_t:s0"


@pytest.mark.parametrize(
    ("contexts", "kind"),
    [("", "targeted"), ('process = "a:b:c:s0"\n', "targeted"), (CONTEXTS, "mls"), (CONTEXTS, "../x"), (CONTEXTS, "")],
)
def test_a_policy_without_labels_for_containers_is_none(tmp_path: Path, contexts: str, kind: str) -> None:
    assert detect(*host(tmp_path, contexts, kind)) is None


def test_a_host_without_selinux_has_no_policy(tmp_path: Path) -> None:
    _, etc = host(tmp_path)
    assert detect(tmp_path / "none", etc) is None


@pytest.mark.parametrize("text", ["a:b:c", "a:b:c:s0", "a:b:c:s0-s15:c0.c1023", "a:b:c:s0:c1,c2", "a:b:c:s0:c1.c3,c5"])
def test_a_label_is_read_and_written(text: str) -> None:
    assert str(Context.parse(text)) == text


@given(st.text(max_size=40))
def test_any_text_is_a_label_or_not(text: str) -> None:
    try:
        found = Context.parse(text)
    except ValueError:
        return
    assert str(found) == text
    assert not set(text) & set(" ,\n\0\"'") or found.level


@pytest.mark.parametrize("path", ["/", "/etc", "/usr/", "/usr/../etc", "//var//lib", "/etc/shadow", "/proc", "/run"])
def test_directories_of_the_system_are_not_labelled(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selinux.os, "setxattr", lambda *_, **__: pytest.fail("labelled"))
    with pytest.raises(PermissionDenied, match="is the system's"):
        relabel(path, "a:b:c:s0")


def test_a_link_to_a_directory_of_the_system_is_not_labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selinux.os, "setxattr", lambda *_, **__: pytest.fail("labelled"))
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(PermissionDenied):
        relabel(str(tmp_path / "link"), "a:b:c:s0")


def test_a_path_that_leads_elsewhere_by_now_is_not_labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selinux.os, "setxattr", lambda *_, **__: pytest.fail("labelled"))
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/link").symlink_to("/")
    # As it was when it was looked at, before its owner put the symlink there.
    monkeypatch.setattr(selinux.os.path, "realpath", str)
    with pytest.raises(InternalError, match="symbolic links"):
        relabel(str(tmp_path / "volume/link/etc"), "a:b:c:s0")


def test_labelling_ends_with_its_callers_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selinux.os, "setxattr", lambda *_, **__: pytest.fail("labelled"))
    (tmp_path / "file").touch()
    with pytest.raises(DeadlineExceeded):
        relabel(str(tmp_path), "a:b:c:s0", Deadline.after(0))
