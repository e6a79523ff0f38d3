"""Packages and images from hand to hand: by a registry, by skopeo, by files, and to a node without a registry."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import wasmtime

from cri.api import runtime_pb2 as pb
from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.package import file, project
from forgeone_shim.package.manifest import Contract
from hack.lab import guests
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry
from tests.e2e.pods import Pod
from tests.e2e.registries import PASSWORD, USER, TokenServer, docker_registry, htpasswd

pytestmark = pytest.mark.root

Factory = Callable[..., Daemon]
KEY = SigningKey.generate()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o755)
    (folder / "it.pub").write_bytes(KEY.public.pem())
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "it.wasm").write_bytes(
        wasmtime.wat2wasm('(module (memory (export "memory") 1) (func (export "_start")))')
    )
    (tmp_path / "assets/etc").mkdir(parents=True)
    (tmp_path / "assets/etc/it.conf").write_text("level = 3\n")
    made = project.Project(name="acme/logger", version="1.2.0", module=tmp_path / "it.wasm", assets=tmp_path / "assets")
    return file.build(made, tmp_path / "logger.forgepkg", KEY).path


def forge(daemon: Daemon, *words: str, code: int = 0, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "forgeone_shim.cli.main", "--socket", daemon.socket, *words]
    done = subprocess.run(argv, check=False, capture_output=True, timeout=120, input=stdin)
    assert done.returncode == code, done.stderr.decode()
    return done


def listed(daemon: Daemon) -> list[pb.Image]:
    return list(daemon.images.ListImages(pb.ListImagesRequest()).images)


def test_a_package_comes_back_from_a_registry_byte_for_byte_and_a_node_pulls_it(
    daemon_factory: Factory, registry: Registry, package: Path, keys: Path, tmp_path: Path
) -> None:
    daemon = daemon_factory({"packages.trusted_keys": str(keys)})
    config = ["--config", str(daemon.config_file)]
    there = f"{registry.address}/acme/logger"
    said = forge(daemon, "pkg", "push", *config, str(package), there).stdout.decode().strip()
    assert said.startswith(f"{there}:1.2.0@sha256:")
    # Pushing what is there already is no error.
    forge(daemon, "pkg", "push", *config, str(package), f"{there}:again")
    back = tmp_path / "back.forgepkg"
    told = forge(daemon, "pkg", "pull", *config, "-o", str(back), f"{there}:1.2.0").stdout.decode()
    assert f"signed by {KEY.public.id}  it.pub" in told
    with file.PackageFile(package) as one, file.PackageFile(back) as two:
        assert two.manifest_digest == one.manifest_digest
    forge(daemon, "pull", "-q", f"{there}:1.2.0")
    (image,) = listed(daemon)
    assert list(image.repo_digests) == [said.replace(":1.2.0@", "@")]
    assert image.spec.annotations["forgeone.dev/package"] == "acme/logger:1.2.0"
    (keys / "it.pub").unlink()
    refused = forge(daemon, "pull", "-q", f"{there}:again", code=1).stderr
    assert b"SignatureValidationFailed" in refused
    absent = tmp_path / "absent.forgepkg"
    forge(daemon, "pkg", "pull", *config, "-o", str(absent), f"{there}:1.2.0", code=1)
    assert not absent.exists()


@pytest.mark.parametrize("kind", ["login", "token"])
def test_a_package_is_pushed_with_a_login_and_not_without(
    forgeoned: Daemon, package: Path, tmp_path: Path, kind: str
) -> None:
    daemon = forgeoned
    with ExitStack() as stack:
        auth = htpasswd(tmp_path)
        if kind == "token":
            tokens = TokenServer(tmp_path)
            stack.callback(tokens.close)
            auth = tokens.settings()
        address = stack.enter_context(docker_registry(tmp_path / "closed", tmp_path / "data", auth=auth))
        folder = Path(daemon.config.registry.config_path) / address
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(f'server = "http://{address}"\n')
        words = ["pkg", "push", "--config", str(daemon.config_file)]
        assert b"unauthorized" in forge(daemon, *words, str(package), f"{address}/a/b", code=1).stderr
        login = ["--username", USER, "--password-stdin"]
        done = forge(daemon, *words, *login, str(package), f"{address}/a/b", stdin=PASSWORD.encode())
        assert PASSWORD.encode() not in done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="no skopeo here")
def test_skopeo_moves_a_package_between_files_and_registries(
    daemon_factory: Factory, registry: Registry, package: Path, keys: Path, tmp_path: Path
) -> None:
    daemon, there = daemon_factory({"packages.trusted_keys": str(keys)}), f"{registry.address}/skopeo/logger:2"

    def skopeo(*words: str) -> None:
        subprocess.run(["skopeo", "copy", "-q", "--insecure-policy", *words], check=True, capture_output=True)

    skopeo("--dest-tls-verify=false", f"oci-archive:{package}", f"docker://{there}")
    skopeo("--src-tls-verify=false", f"docker://{there}", f"oci-archive:{tmp_path / 'back.forgepkg'}")
    with file.PackageFile(package) as one, file.PackageFile(tmp_path / "back.forgepkg") as two:
        assert two.manifest_digest == one.manifest_digest
    forge(daemon, "pull", "-q", there)
    # Without a name in its index, a package is called what it calls itself.
    said = forge(daemon, "images", "import", str(tmp_path / "back.forgepkg")).stdout.decode().split()
    assert sorted(said) == sorted([there, "localhost/acme/logger:1.2.0"])
    forge(daemon, "images", "export", "-o", str(tmp_path / "node.tar"), there)
    skopeo(
        "--dest-tls-verify=false", f"oci-archive:{tmp_path / 'node.tar'}", f"docker://{registry.address}/skopeo/again:1"
    )
    again = forge(daemon, "pull", "-q", f"{registry.address}/skopeo/again:1").stdout
    assert again == forge(daemon, "pull", "-q", there).stdout


def test_a_node_without_a_registry_runs_what_another_exported(
    daemon_factory: Factory, busybox: str, tmp_path: Path
) -> None:
    one, two = daemon_factory({"registry.keep_blobs": True}), daemon_factory()
    shutil.rmtree(two.config.registry.config_path)
    forge(one, "pull", "-q", busybox)
    archive = forge(one, "images", "export", busybox).stdout
    assert forge(two, "images", "import", stdin=archive).stdout.decode() == f"{busybox}\n"
    before, after = listed(one)[0], listed(two)[0]
    assert (after.id, after.repo_digests, after.size) == (before.id, before.repo_digests, before.size)
    assert Pod.plan(two).run().output(busybox, "echo", "here") == "here\n"


def test_a_package_that_was_pulled_runs_with_the_registry_gone(
    daemon_factory: Factory, keys: Path, tmp_path: Path
) -> None:
    daemon = daemon_factory({"packages.trusted_keys": str(keys)})
    (tmp_path / "it.wasm").write_bytes(guests.guest(guests.arguments(), guests.cat("/etc/it.conf")))
    (tmp_path / "assets/etc").mkdir(parents=True)
    (tmp_path / "assets/etc/it.conf").write_text("level = 3\n")
    made = project.Project(name="acme/logger", version="1.2.0", module=tmp_path / "it.wasm", assets=tmp_path / "assets")
    package = file.build(made, tmp_path / "it.forgepkg", KEY).path
    with docker_registry(tmp_path / "registry", tmp_path / "data") as address:
        folder = Path(daemon.config.registry.config_path) / address
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(f'server = "http://{address}"\n')
        forge(daemon, "pkg", "push", "--config", str(daemon.config_file), str(package), f"{address}/a/b")
        forge(daemon, "pull", "-q", f"{address}/a/b:1.2.0")
    daemon.restart()
    pod = Pod.plan(daemon)
    pod.id = str(
        daemon.runtime.RunPodSandbox(
            pb.RunPodSandboxRequest(config=pod.config, runtime_handler="forgeone-wasm"), timeout=60
        ).pod_sandbox_id
    )
    config = pod.container(f"{address}/a/b:1.2.0")
    del config.command[:]
    id_ = pod.start(config)
    assert pod.wait(id_).exit_code == 0
    assert pod.log(id_) == "logger\nlevel = 3\n"
    with pytest.raises(grpc.RpcError, match="Connection refused") as refused:
        daemon.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=f"{address}/a/b:other")), timeout=60)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_package_that_asks_for_a_policy_runs_under_it(
    daemon_factory: Factory, registry: Registry, keys: Path, tmp_path: Path
) -> None:
    policies = tmp_path / "policies.d"
    policies.mkdir()
    (policies / "quiet.yaml").write_text(
        "apiVersion: forgeone.dev/v1\nkind: ZTAPolicy\nmetadata: {name: quiet}\n"
        "spec: {contract: {rbac: {attach: false}}}\n"
    )
    daemon = daemon_factory({"packages.trusted_keys": str(keys), "contract.policies_dir": str(policies)})
    (tmp_path / "it.wasm").write_bytes(guests.guest(guests.sleep(3600)))
    config = ["--config", str(daemon.config_file)]
    pod = Pod.plan(daemon)
    pod.id = str(
        daemon.runtime.RunPodSandbox(
            pb.RunPodSandboxRequest(config=pod.config, runtime_handler="forgeone-wasm"), timeout=60
        ).pod_sandbox_id
    )
    for name, policy in (("quiet", "quiet"), ("strange", "missing")):
        made = project.Project(
            name=f"acme/{name}",
            version="1.0.0",
            module=tmp_path / "it.wasm",
            contract=Contract(runtime_policy_id=policy),
        )
        file.build(made, tmp_path / f"{name}.forgepkg", KEY)
        forge(daemon, "pkg", "push", *config, str(tmp_path / f"{name}.forgepkg"), f"{registry.address}/acme/{name}")
        forge(daemon, "pull", "-q", f"{registry.address}/acme/{name}:1.0.0")
    quiet = pod.container(f"{registry.address}/acme/quiet:1.0.0", name="quiet")
    del quiet.command[:]
    id_ = pod.start(quiet)
    with pytest.raises(grpc.RpcError, match=r"denied by quiet/rbac\.attach") as denied:
        daemon.runtime.Attach(pb.AttachRequest(container_id=id_, stdout=True), timeout=60)
    assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED
    strange = pod.container(f"{registry.address}/acme/strange:1.0.0", name="strange")
    with pytest.raises(grpc.RpcError, match="there is no policy 'missing' here"):
        pod.create(strange)


def test_a_forgeoned_killed_while_an_archive_comes_leaves_nothing(
    daemon_factory: Factory, busybox: str, tmp_path: Path
) -> None:
    daemon = daemon_factory({"registry.keep_blobs": True})
    forge(daemon, "pull", "-q", busybox)
    archive = forge(daemon, "images", "export", busybox).stdout
    forge(daemon, "rmi", busybox)

    def there() -> list[str]:
        return sorted(str(path) for path in Path(daemon.config.root).rglob("*") if "db" not in path.name)

    before = there()
    words = [sys.executable, "-m", "forgeone_shim.cli.main", "--socket", daemon.socket, "images", "import"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdin is not None
        running.stdin.write(archive[: len(archive) // 2])
        running.stdin.flush()
        daemon.kill()
        running.stdin.close()
        assert running.wait(60) == 1
    daemon.start()
    assert there() == before
    assert forge(daemon, "images", "import", stdin=archive).stdout.decode() == f"{busybox}\n"


def test_an_import_cut_short_leaves_nothing(daemon_factory: Factory, busybox: str, tmp_path: Path) -> None:
    daemon = daemon_factory({"registry.keep_blobs": True})
    forge(daemon, "pull", "-q", busybox)
    archive = forge(daemon, "images", "export", busybox).stdout
    forge(daemon, "rmi", busybox)
    before = sorted(str(path) for path in Path(daemon.config.root).rglob("*") if "db" not in path.name)
    refused = forge(daemon, "images", "import", stdin=archive[: len(archive) // 2], code=1).stderr
    assert b"ends inside a member" in refused
    assert sorted(str(path) for path in Path(daemon.config.root).rglob("*") if "db" not in path.name) == before
    assert listed(daemon) == []
