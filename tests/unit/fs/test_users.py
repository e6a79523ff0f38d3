from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.base import GroupsPolicy, Security, User
from forgeone_shim.errors import InvalidInput
from forgeone_shim.fs.users import resolve_user

PASSWD = """\
# comment
root:x:0:0:root:/root:/bin/sh
bob:x:1000:1001:Bob:/home/bob:/bin/sh
eve:x:2000:2000::relative:/bin/sh
short:x:3000:3000
broken:x:abc:0::/:/bin/sh
:x:4000:0::/:/bin/sh
77:x:5000:5000::/:/bin/sh
"""
GROUP = """\
root:x:0:
wheel:x:10:root,bob
bob:x:1001:bob
staff:x:50:bob,,eve
odd:x:99x:bob
bare:x:60
"""
STRICT = GroupsPolicy.STRICT


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("image_user", "security", "expected"),
    [
        ("", Security(), User(0, 0, (0, 10), "/root")),
        ("0", Security(), User(0, 0, (0, 10), "/root")),
        ("bob", Security(), User(1000, 1001, (1001, 10, 50), "/home/bob")),
        ("1000", Security(), User(1000, 1001, (1001, 10, 50), "/home/bob")),
        ("1234", Security(), User(1234, 0, (0,), "/")),
        ("1234:50", Security(), User(1234, 50, (50,), "/")),
        ("1234:staff", Security(), User(1234, 50, (50,), "/")),
        ("bob:0", Security(), User(1000, 0, (0, 10, 50), "/home/bob")),
        ("bob:wheel", Security(), User(1000, 10, (10, 50), "/home/bob")),
        ("bob:", Security(), User(1000, 1001, (1001, 10, 50), "/home/bob")),
        (":staff", Security(), User(0, 50, (50, 10), "/root")),
        ("eve", Security(), User(2000, 2000, (2000, 50), "/")),
        ("short", Security(), User(3000, 3000, (3000,), "/")),
        # Digits are an id even where a user is called so.
        ("77", Security(), User(77, 0, (0,), "/")),
        ("bob", Security(run_as_user=0), User(0, 0, (0, 10), "/root")),
        ("bob", Security(run_as_user=1234), User(1234, 0, (0,), "/")),
        ("bob", Security(run_as_user=2000, run_as_group=7), User(2000, 7, (7, 50), "/")),
        ("eve", Security(run_as_username="bob"), User(1000, 1001, (1001, 10, 50), "/home/bob")),
        ("eve", Security(run_as_username="bob", run_as_user=5), User(1000, 1001, (1001, 10, 50), "/home/bob")),
        ("eve", Security(run_as_username="bob", run_as_group=9), User(1000, 9, (9, 10, 50), "/home/bob")),
        ("bob", Security(supplemental_groups=(5, 10, 5)), User(1000, 1001, (1001, 10, 50, 5), "/home/bob")),
        (
            "bob",
            Security(supplemental_groups=(5,), supplemental_groups_policy=STRICT),
            User(1000, 1001, (1001, 5), "/home/bob"),
        ),
        ("bob", Security(supplemental_groups_policy=STRICT), User(1000, 1001, (1001,), "/home/bob")),
    ],
)
def test_the_user_of_the_container(rootfs: Path, image_user: str, security: Security, expected: User) -> None:
    assert resolve_user(rootfs, image_user, security) == expected


@pytest.mark.parametrize(
    ("image_user", "security", "told"),
    [
        ("nobody", Security(), "nobody"),
        ("broken", Security(), "broken"),
        ("bob:nogroup", Security(), "nogroup"),
        ("bob:odd", Security(), "odd"),
        ("a:b:c", Security(), "colon"),
        ("-1", Security(), "-1"),
        ("99999999999", Security(), "99999999999"),
        ("4294967295", Security(), "4294967295"),
        ("１", Security(), "１"),
        ("", Security(run_as_username="nobody"), "run_as_username"),
        ("", Security(run_as_user=-1), "run_as_user"),
        ("", Security(run_as_group=5), "run_as_group"),
        ("bob", Security(run_as_group=5), "run_as_group"),
        ("", Security(run_as_user=1, run_as_group=1 << 31), "run_as_group"),
        ("", Security(supplemental_groups=(-3,)), "supplemental_groups"),
    ],
)
def test_what_cannot_be_resolved_is_named(rootfs: Path, image_user: str, security: Security, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        resolve_user(rootfs, image_user, security)


def test_an_image_without_files_has_root_and_numbers(tmp_path: Path) -> None:
    assert resolve_user(tmp_path, "", Security()) == User(0, 0, (0,), "/")
    assert resolve_user(tmp_path, "5:6", Security()) == User(5, 6, (6,), "/")
    with pytest.raises(InvalidInput):
        resolve_user(tmp_path, "bob", Security())


@pytest.mark.parametrize("target", ["/outside/passwd", "../outside/passwd", "../../../../../../outside/passwd"])
def test_symlinks_stay_in_the_rootfs(rootfs: Path, target: str) -> None:
    inside = rootfs / "outside"
    inside.mkdir()
    (inside / "passwd").write_text("ann:x:7:7::/:\n")
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to(target)
    assert resolve_user(rootfs, "ann", Security()).uid == 7


def test_a_symlink_to_a_file_of_the_host_finds_nothing(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    host = tmp_path_factory.mktemp("host") / "passwd"
    host.write_text("ann:x:7:7::/:\n")
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to(host)
    with pytest.raises(InvalidInput, match="ann"):
        resolve_user(rootfs, "ann", Security())


def test_what_is_no_plain_file_or_out_of_bounds_is_refused(rootfs: Path) -> None:
    passwd = rootfs / "etc/passwd"
    passwd.unlink()
    os.mkfifo(passwd)
    with pytest.raises(InvalidInput, match="regular"):
        resolve_user(rootfs, "bob", Security())
    passwd.unlink()
    passwd.symlink_to("passwd")
    with pytest.raises(InvalidInput):
        resolve_user(rootfs, "bob", Security())
    passwd.unlink()
    with passwd.open("wb") as file:
        file.truncate(9 << 20)
    with pytest.raises(InvalidInput, match="larger"):
        resolve_user(rootfs, "bob", Security())
    passwd.write_bytes(b"x" * 70_000 + b"\n")
    with pytest.raises(InvalidInput, match="line"):
        resolve_user(rootfs, "bob", Security())


def test_names_in_any_encoding_do_not_hurt(rootfs: Path) -> None:
    (rootfs / "etc/passwd").write_bytes(b"\xff\xfe:x:1:1::/:\nbob:x:1000:1001::/:\n")
    assert resolve_user(rootfs, "bob", Security()).uid == 1000
