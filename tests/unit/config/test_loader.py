from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.config.loader import Key, keys, load, load_or_exit, to_toml
from forgeone_shim.config.model import Config, NetworkConfig
from forgeone_shim.errors import InvalidInput


def write(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return ["--config", str(path)]


def test_nothing_given_is_the_defaults() -> None:
    assert load([], {}) == Config()


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    argv = write(tmp_path, '[network]\nbridge = "file0"\ntable = "file"\nlink_prefix = "fl"\n')
    environ = {"FORGEONE_NETWORK__BRIDGE": "env0", "FORGEONE_NETWORK__TABLE": "env"}
    network = load([*argv, "--network-bridge", "flag0"], environ).network
    assert network == NetworkConfig(bridge="flag0", table="env", link_prefix="fl")


@pytest.mark.parametrize("key", list(keys()), ids=lambda key: key.path)
def test_every_key_can_be_set_from_file_environment_and_flag(key: Key, tmp_path: Path) -> None:
    text = {str: "", int: "1500", float: "7.5", bool: "false"}.get(key.type, "one,two")
    special = {
        "root": "/x/root",
        "state": "/x/state",
        "socket": "/x/s",
        "cgroup_root": "/x",
        "handlers_dir": "/x",
        "log.level": "error",
        "log.format": "console",
        "registry.config_path": "/x",
        "registry.keep_blobs": "true",
        "registry.max_concurrent_downloads": "9",
        "registry.platform": "linux/arm64",
        "registry.auth_file": "/x",
        "registry.namespaced_auth_dir": "/x",
        "packages.trusted_keys": "/x",
        "packages.unsigned": "allow",
        "signatures.policy": "/x/policy.json",
        "signatures.namespaces_dir": "/x",
        "signatures.images_dir": "/x",
        "signatures.notation": "/x/trustpolicy.json",
        "signatures.roots_dir": "/x",
        "signatures.unmatched": "warn",
        "signatures.verifiers_dir": "/x",
        "network.mode": "builtin",
        "network.bridge": "x0",
        "network.table": "x",
        "network.link_prefix": "x",
        "network.ipv4": "10.1.0.0/24",
        "cni.conf_dir": "/x",
        "cni.bin_dirs": "/x,/y",
        "cni.conf_template": "/x",
        "cni.max_conf_num": "3",
        "cni.ip_preference": "cni",
        "native.cgroup_driver": "systemd",
        "native.seccomp_profile_root": "/x",
        "native.seccomp_default_profile": "/x",
        "native.log_size_max": "100000",
        "native.log_rate": "100000",
        "native.hooks_dirs": "/x,/y",
        "native.default_env": "A=1,B=",
        "native.default_mounts": "/x:/y,/z:/w:ro",
        "native.default_ulimits": "nofile=1024:2048,core=-1",
        "native.additional_devices": "/dev/a,/dev/b:/dev/c:rw",
        "native.allowed_devices": "/dev/fuse",
        "native.device_ownership_from_security_context": "true",
        "native.cgroup_writable": "annotation",
        "wasm.compile_memory": "500000000",
        "wasm.log_size_max": "100000",
        "wasm.log_rate": "100000",
        "microvm.vmm": "firecracker",
        "microvm.accel": "tcg",
        "microvm.boot_set": "/x",
        "microvm.kernel": "/x",
        "microvm.modules_dir": "/x",
        "microvm.agent": "/x",
        "microvm.boot_keys": "/x",
        "microvm.require_signed_boot": "true",
        "microvm.memory": "500000000",
        "microvm.memory_overhead": "50000000",
        "microvm.vcpus_max": "3",
        "microvm.writable_layer": "disk",
        "microvm.writable_layer_size": "50000000",
        "microvm.log_size_max": "100000",
        "microvm.log_rate": "100000",
        "cdi.spec_dirs": "/x,/y",
        "default_sysctls": "net.ipv4.tcp_syncookies=0,kernel.shmmax=1",
        "grpc.max_message_bytes": "5000000",
        "streaming.address": "::1",
        "metrics.address": "[::1]:9580",
        "metrics.tls_cert_file": "/x/cert.pem",
        "metrics.tls_key_file": "/x/key.pem",
        "metrics.client_ca_file": "/x/ca.pem",
        "upstream.socket": "/x/c",
        "upstream.default_runtime": "forgeone",
        "upstream.policies": "deny",
        "streaming.tls_cert_file": "/x/cert.pem",
        "streaming.tls_key_file": "/x/key.pem",
        "resources.blockio_config_file": "/x/blockio.yaml",
        "selinux.mode": "off",
        "selinux.categories": "9",
        "contract.policies_dir": "/x/policies.d",
        "contract.default_policy": "house",
        "contract.issuers_dir": "/x/issuers.d",
        "contract.kubelet_dir": "/x/kubelet",
        "cluster.kubeconfig": "/x/kubelet.conf",
        "cluster.required": "true",
        "cluster.node_name": "node-1.example",
        "audit.keep": "0",
        "audit.on_damage": "report",
        "audit.arguments": "true",
    }
    text = special.get(
        key.path, "program" if key.path.startswith(("native.", "microvm.")) and key.type is str else text
    )
    by_flag = load([key.flag, text], {})
    assert by_flag != Config()
    assert load([], {key.variable: text}) == by_flag
    assert load(write(tmp_path, to_toml(by_flag)), {}) == by_flag


@pytest.mark.parametrize(
    ("text", "named", "meant"),
    [
        ('[network]\nbrigde = "x"', "network.brigde", "network.bridge"),
        ("[netwrok]\n", "netwrok", "network"),
        ('bridge = "x"', "bridge", "network.bridge"),
        ('[registry]\nroot = "/x"', "registry.root", "root"),
        ("zzzz = 1", "zzzz", ""),
    ],
)
def test_an_unknown_key_is_named_with_the_key_meant(text: str, named: str, meant: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(write(tmp_path, text), {})
    assert caught.value.field == named
    assert (f"did you mean '{meant}'" in str(caught.value)) is bool(meant)
    assert "config.toml" in str(caught.value)


def test_an_unknown_variable_is_named_with_the_variable_meant() -> None:
    with pytest.raises(InvalidInput, match=r"FORGEONE_NETWORK_BRIDGE: .*'FORGEONE_NETWORK__BRIDGE'"):
        load([], {"FORGEONE_NETWORK_BRIDGE": "x"})


def test_an_unknown_flag_is_refused_and_flags_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--no-such", "--networ"):
        with pytest.raises(SystemExit) as caught:
            load([flag, "x"], {})
        assert caught.value.code == 2
    assert "--no-such" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("root = 1", "root"),
        ("[grpc]\nthreads = true", "grpc.threads"),
        ('[grpc]\nthreads = "4"', "grpc.threads"),
        ("[grpc]\nthreads = 4.0", "grpc.threads"),
        ("[network]\nmasquerade = 1", "network.masquerade"),
        ('pinned_images = "x"', "pinned_images"),
        ("pinned_images = [1]", "pinned_images"),
        ("network = 1", "network"),
        ("[root]\n", "root"),
        ("[log]\nlevel = 2020-01-01", "log.level"),
    ],
)
def test_a_value_of_the_wrong_type_names_its_key(text: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(write(tmp_path, text), {})
    assert caught.value.field == key


def test_a_variable_of_the_wrong_type_names_the_variable() -> None:
    with pytest.raises(InvalidInput, match="FORGEONE_GRPC__THREADS: must be an integer, got 'many'"):
        load([], {"FORGEONE_GRPC__THREADS": "many"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("root", "var/lib"),
        ("cluster.kubeconfig", "kubelet.conf"),
        ("cluster.node_name", "node_1"),
        ("cluster.node_name", "n" * 254),
        ("upstream.socket", "containerd.sock"),
        ("upstream.socket", "/run/forgeone/forgeone.sock"),
        ("upstream.default_runtime", "containerd"),
        ("upstream.policies", "enforce"),
        ("metrics.address", "9580"),
        ("metrics.address", ":9580"),
        ("metrics.address", "localhost:9580"),
        ("metrics.address", "0.0.0.0:95800"),
        ("metrics.address", "::1:9580"),
        ("metrics.address", "[127.0.0.1]:9580"),
        ("metrics.client_ca_file", "ca.pem"),
        ("root", "/var/../etc"),
        ("root", "/var//lib"),
        ("root", "//var"),
        ("root", "/run/forgeone"),
        ("root", "/run/forgeone/images"),
        ("state", "/var/lib"),
        ("socket", "/" + "s" * 107),
        ("socket_gid", "-1"),
        ("pinned_images", ""),
        ("grpc.threads", "0"),
        ("log.level", "loud"),
        ("log.format", "xml"),
        ("registry.config_path", "certs.d"),
        ("registry.max_concurrent_downloads", "0"),
        ("registry.progress_timeout", "0"),
        ("registry.progress_timeout", "nan"),
        ("registry.platform", "linux"),
        ("network.mode", "bridge"),
        ("network.bridge", "a-very-long-name"),
        ("network.bridge", "a/b"),
        ("network.bridge", ""),
        ("network.table", "a b"),
        ("network.link_prefix", "waytoolong"),
        ("network.link_prefix", "1a"),
        ("network.ipv4", "10.88.0.1/16"),
        ("network.ipv4", "10.88.0.0/33"),
        ("network.ipv4", "fd88::/64"),
        ("network.ipv4", "10.0.0.0/31"),
        ("network.ipv4", ""),
        ("network.ipv6", "10.88.0.0/16"),
        ("network.mtu", "600"),
        ("network.mtu", "70000"),
        ("cni.conf_dir", "net.d"),
        ("cni.bin_dirs", ""),
        ("cni.bin_dirs", "/a:/b"),
        ("cni.max_conf_num", "-1"),
        ("cni.conf_template", "template"),
        ("cni.ip_preference", "ipv5"),
        ("cni.timeout", "0"),
        ("native.crun", ""),
        ("native.crun", "bin/crun"),
        ("native.cgroup_driver", "elogind"),
    ],
)
def test_a_value_that_cannot_be_used_names_its_key(key: str, value: str) -> None:
    flag = next(item.flag for item in keys() if item.path == key)
    if key == "pinned_images":
        with pytest.raises(InvalidInput, match="pinned_images"):
            Config(pinned_images=("",))
        return
    with pytest.raises(InvalidInput) as caught:
        load([flag, value], {})
    assert caught.value.field in {key, "root"}


def test_a_small_mtu_is_fine_without_ipv6() -> None:
    assert load(["--network-mtu", "600", "--network-ipv6", ""], {}).network.mtu == 600


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="does not exist"):
        load(["--config", str(tmp_path / "none.toml")], {})
    with pytest.raises(InvalidInput, match="does not exist"):
        load([], {"FORGEONE_CONFIG": str(tmp_path / "none.toml")})


@pytest.mark.parametrize("text", ["root = ", "\0", "[network]\n[network]\n"])
def test_a_file_that_is_not_toml_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not TOML"):
        load(write(tmp_path, text), {})


def test_print_config_prints_toml_that_reads_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["--pinned-images", "a,b*", "--registry-progress-timeout", "12", "--print-config"]
    with pytest.raises(SystemExit) as caught:
        load(argv, {})
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert load(write(tmp_path, printed), {}) == load(argv[:-1], {})


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",))))
def test_any_string_survives_the_toml_writer(text: str) -> None:
    config = Config(pinned_images=(f"x{text}",))
    assert tomllib.loads(to_toml(config))["pinned_images"] == [f"x{text}"]


def test_a_program_ends_with_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_or_exit([], {"FORGEONE_LOG__LEVEL": "loud"})
    assert caught.value.code == 2
    assert capsys.readouterr().err == "forgeoned: log.level: 'loud' is not one of debug, info, warning, error\n"


@pytest.mark.parametrize(("key", "value"), [("accel", "tcg"), ("writable_layer", "disk")])
def test_what_only_qemu_does_is_refused_of_other_monitors(key: str, value: str) -> None:
    assert load(["--microvm-vmm", "firecracker"], {}).microvm.vmm == "firecracker"
    with pytest.raises(InvalidInput, match=rf"microvm\.{key}: '{value}' is what QEMU alone does"):
        load(["--microvm-vmm", "firecracker", f"--microvm-{key.replace('_', '-')}", value], {})
