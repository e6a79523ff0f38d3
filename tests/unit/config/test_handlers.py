"""Runtime handlers are files, read strictly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.base import HandlerSettings
from forgeone_shim.config.handlers import Handler, parse, read
from forgeone_shim.errors import InvalidInput


def test_each_file_is_a_handler_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "gpu.toml").write_text('cni_conf_dir = "/etc/cni/gpu.d"\n')
    (tmp_path / "a-1.toml").write_text("")
    assert read(tmp_path) == (Handler(name="a-1"), Handler(name="gpu", cni_conf_dir="/etc/cni/gpu.d"))


def test_the_files_that_come_along_are_names_of_the_wasm_engine() -> None:
    found = {one.name: one for one in read(Path(__file__).parents[3] / "hack/handlers.d")}
    assert {one.engine for one in found.values()} == {"wasm"}
    assert set(found) == {"wasm", "wasmtime", "spin"}
    assert found["spin"].default_env == ("WASMTIME_HTTP_PROXY_SOCKET_ADDR=0.0.0.0:80",)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("README", "gpu.toml~", ".gpu.toml", "gpu.toml.bak"):
        (tmp_path / name).write_text("=")
    assert read(tmp_path) == ()


def test_no_directory_is_no_handlers(tmp_path: Path) -> None:
    assert read(tmp_path / "missing") == ()


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        ('cni_confdir = "/x"', "cni_confdir", "did you mean 'cni_conf_dir'"),
        ('name = "other"', "name", "not a key"),
        ('seccomp = "{}"', "seccomp", "not a key"),
        ('privileged_without_host_devices = "yes"', "privileged_without_host_devices", "must be true or false"),
        ('seccomp_profile = "strict.json"', "seccomp_profile", "not an absolute path"),
        ("engine = 1", "engine", "must be a string, got an integer"),
        ('engine = ""', "engine", "is empty"),
        ('cni_conf_dir = "etc"', "cni_conf_dir", "not an absolute path"),
        ("[engine]\nx = 1", "engine", "must be a string, got a table"),
        ("engine", "content", "is not TOML"),
        ('default_env = ["A"]', "default_env", "is not NAME=value"),
        ("wasm_only = true", "wasm_only", "alone, not 'native'"),
    ],
)
def test_a_bad_file_is_an_error_that_names_file_and_key(tmp_path: Path, text: str, key: str, why: str) -> None:
    path = tmp_path / "gpu.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path)
    assert caught.value.field == f"{path}: {key}"
    assert why in str(caught.value)


@pytest.mark.parametrize("name", ["", "GPU", "a.b", "-a", "a-", "a" * 64, "forgeone-native", "forgeone-x", "a/b"])
def test_a_name_is_what_a_runtime_class_may_name_and_none_of_ours(name: str) -> None:
    with pytest.raises(InvalidInput, match="name: "):
        parse(name, "")


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gpu.toml")
    with pytest.raises(InvalidInput, match="not a regular file"):
        read(tmp_path)


def test_what_cannot_be_read_as_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gpu.toml").write_bytes(b"\xff")
    with pytest.raises(InvalidInput, match="not UTF-8"):
        read(tmp_path)
    (tmp_path / "gpu.toml").write_bytes(b"#" * (1 << 20) + b"#")
    with pytest.raises(InvalidInput, match="larger"):
        read(tmp_path)


def test_a_handler_has_its_seccomp_profile_with_it(tmp_path: Path) -> None:
    profile = tmp_path / "strict.json"
    profile.write_text("{}")
    (tmp_path / "gpu.toml").write_text(f'seccomp_profile = "{profile}"\nprivileged_without_host_devices = true\n')
    (found,) = read(tmp_path)
    assert found.settings == HandlerSettings(seccomp="{}", host_devices=False)
    profile.unlink()
    with pytest.raises(InvalidInput, match=f"gpu.toml: seccomp_profile: {profile} cannot be read"):
        read(tmp_path)
