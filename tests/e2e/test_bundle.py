"""The bundle on a host without Python and with an older libc: laid out, relocated, packaged, used, removed.

One is built and one bare host bootstrapped for all tests of this file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forgeone_shim.version import VERSION
from hack.bundle import deb, layout
from hack.bundle.artifacts import Stamp
from hack.lab import guests, images, modules
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry
from hack.lab.settings import patient
from tests.e2e.bare_host import BareHost, Base
from tests.e2e.conftest import Push

pytestmark = pytest.mark.root

PREFIX = layout.prefix(VERSION)
# Each of these breaks a Python, a libc or a loader that follows it.
POISON = {
    "PYTHONHOME": "/nowhere",
    "PYTHONPATH": "/poison",
    "PYTHONSTARTUP": "/poison/start.py",
    "LD_LIBRARY_PATH": "/poison",
    "LD_PRELOAD": "/poison/libc.so.6",
    "LANG": "tr_TR.UTF-8",
    "LOCPATH": "/poison",
    "GCONV_PATH": "/poison",
    "OPENSSL_CONF": "/poison/openssl.cnf",
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
}


@dataclass(frozen=True, slots=True)
class Made:
    """``archive`` and ``package`` are what was built, ``laid_out`` is a layer with the bundle as it lies on a node."""

    archive: Path
    package: Path
    laid_out: Path
    release: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    directory = tmp_path_factory.mktemp("bundle")
    try:
        base = Base(directory)
    except LookupError as why:
        pytest.skip(str(why))
    try:
        # Beside each other: either takes half a minute.
        build = [sys.executable, "-m", "hack.bundle", "--output", str(directory / "dist"), "--deb"]
        done = subprocess.run(build, check=False, capture_output=True, text=True, cwd=layout.REPOSITORY, timeout=600)
        assert done.returncode == 0, done.stderr
        [archive], [package] = directory.glob("dist/*.tar.gz"), directory.glob("dist/*.deb")
        subprocess.run(
            ["sha256sum", "--check", "--strict", *directory.glob("dist/*.sha256")], check=True, cwd=archive.parent
        )
        laid_out = directory / "laid-out"
        unpack(archive, laid_out / PREFIX[1:])
        (laid_out / layout.CURRENT[1:]).symlink_to(f"versions/{VERSION}")
        release = base.ready(patient(120))
    except LookupError as why:
        pytest.skip(str(why))
    finally:
        base.close()
    yield Made(archive, package, laid_out, release)
    shutil.rmtree(directory, ignore_errors=True)


def unpack(archive: Path, place: Path) -> None:
    """As the directory ``place``."""
    place.mkdir(parents=True)
    subprocess.run(
        ["tar", "--extract", f"--file={archive}", f"--directory={place}", "--strip-components=1"], check=True
    )


def unpacked(made: Made, directory: Path, place: str) -> BareHost:
    """A host where the archive was unpacked at ``place``: names of the files that it was unpacked to before."""
    layer = directory / "layer"
    shutil.copytree(made.laid_out / PREFIX[1:], layer / place[1:], symlinks=True, copy_function=os.link)
    return BareHost([layer, made.release], directory / "host")


@pytest.fixture
def bare(made: Made, tmp_path: Path) -> Iterator[BareHost]:
    """A host without the bundle."""
    with BareHost([made.release], tmp_path / "host") as running:
        yield running


@pytest.fixture
def host(made: Made, tmp_path: Path) -> Iterator[BareHost]:
    """A host with the bundle."""
    with BareHost([made.laid_out, made.release], tmp_path / "host") as running:
        yield running


def test_pods_run_by_it_on_a_host_without_python(host: BareHost, registry: Registry, push: Push) -> None:
    native = push("bundle/native:latest", images.busybox())
    module = modules.artifact(guests.guest(guests.say("a module\n")))
    wasm = images.push(registry.address, "bundle/wasm:latest", module)
    assert not list(host.path("/usr/bin").glob("python*"))
    mounted = host.mounts()
    forge = f"{layout.CURRENT}/bin/forge"
    daemon = Daemon([registry.address], program=host.command(f"{layout.CURRENT}/bin/forgeoned"))
    try:
        daemon.start()
        for engine, image, words, line in (
            ("native", native, ("--", "echo", "a container"), "a container"),
            ("wasm", wasm, (), "a module"),
        ):
            logs = ("--log-dir", f"{daemon.directory}/logs")
            run = host.run(forge, "--socket", daemon.socket, "run", "--rm", "--engine", engine, *logs, image, *words)
            assert run.stdout == f"{line}\n"
        assert foreign_libraries(host) == {}
        daemon.remove_pods()
        assert daemon.left() == []
        assert daemon.stop() == 0
        assert host.mounts() == mounted
    finally:
        daemon.close()
    host.run("rm", "-rf", "/opt/forgeone")
    assert host.run("find", "/opt", "/etc/forgeone", "/usr", "-name", "*forge*", code=1).stdout == ""


def test_it_installs_itself_on_a_node_and_takes_itself_away(made: Made, tmp_path: Path) -> None:
    place = f"/srv/unpacked/forgeone-{VERSION}"
    with unpacked(made, tmp_path, place) as host:
        before = files(host)
        host.run(f"{place}/relocate")
        node = (f"{place}/bin/forge", "node")
        host.run(*node, "install", "--replace", "--kubelet=none", "--service=none", f"--bundle={place}")
        said = json.loads(host.path(f"{PREFIX}/manifest.json").read_text())
        assert wrong(said, host.path(PREFIX)) == []
        assert host.run(f"{layout.CURRENT}/bin/forge", "--version").stdout == f"forge {VERSION}\n"
        host.run(*node, "uninstall", "--service=none")
        host.run("rm", "-rf", "/srv/unpacked", "/var/lib/forgeone-node")
        assert files(host) - before <= {"/etc/systemd/system/multi-user.target.wants"}


def foreign_libraries(host: BareHost) -> dict[str, list[str]]:
    """By command line of each process whose program is the bundle's, the libraries it has from elsewhere."""
    found: dict[str, list[str]] = {}
    seen = False
    for process in Path("/proc").glob("[0-9]*"):
        try:
            program, maps = os.readlink(process / "exe"), (process / "maps").read_text()
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if program.startswith(PREFIX):
            seen = True
            paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if ".so" in line}
            if others := sorted(path for path in paths if not path.startswith(PREFIX)):
                found[command] = others
    assert seen
    return found


def test_nothing_of_the_hosts_leaks_in(host: BareHost) -> None:
    poison = host.path("/poison")
    poison.mkdir()
    for name in ("libc.so.6", "libssl.so.3", "libz.so.1", "openssl.cnf"):
        (poison / name).write_text("poison")
    (poison / "sitecustomize.py").write_text("raise SystemExit('leaked')\n")
    shutil.copytree(poison, host.path("/usr/lib/python3/dist-packages"))
    shutil.copytree(poison, host.path("/usr/local/lib/python3.11/dist-packages"))
    host.path("/etc/ld.so.preload").write_text("/poison/libc.so.6\n")
    host.path("/etc/hosts").write_text("127.0.0.1 localhost\n")
    host.path("/etc/nsswitch.conf").write_text(
        "passwd: sss poison compat\nhosts: resolve [!UNAVAIL=return] poison files\n"
    )
    program = (
        "import encodings.idna, json, os, pwd, socket, ssl, sqlite3, sys, uuid, zlib;"
        "socket.getaddrinfo('localhost', 80); pwd.getpwnam('root');"
        "print(json.dumps([sys.path, sys.executable, dict(os.environ), sys.flags.utf8_mode,"
        " len(ssl.create_default_context().get_ca_certs())]))"
    )
    shutil.copyfile("/bin/busybox", poison / "busybox")
    (poison / "busybox").chmod(0o755)
    # What enters the host needs a loader, too, and must not be poisoned itself.
    poisoned = ("/poison/busybox", "env", "-i", *(f"{name}={value}" for name, value in POISON.items()))
    done = host.run(*poisoned, f"{layout.CURRENT}/bin/python3", "-c", program)
    path, executable, environment, utf8, authorities = json.loads(done.stdout)
    assert done.stderr == ""
    assert [place for place in path if not place.startswith(f"{PREFIX}/lib/")] == []
    assert executable == f"{PREFIX}/bin/python3"
    assert environment == {
        "LC_ALL": "C",
        "PATH": f"{PREFIX}/bin:{POISON['PATH']}",
        # The release has no authorities of its own.
        "SSL_CERT_FILE": f"{PREFIX}/share/ca-certificates.crt",
    }
    assert utf8 == 1
    assert authorities > 100
    for program in ("crun", "conmon", "nft"):
        # These have no launcher, and do what LD_PRELOAD says.
        done = host.run(*poisoned, "/poison/busybox", "env", "-u", "LD_PRELOAD", f"{PREFIX}/bin/{program}", "--version")
        assert done.stdout
        assert done.stderr == ""


def test_every_module_finds_its_libraries_in_the_bundle(host: BareHost) -> None:
    program = (
        "import ctypes, pathlib, sys;"
        "found = sorted(pathlib.Path(sys.prefix, 'lib').rglob('*.so'));"
        "[ctypes.CDLL(str(path), 0x1) for path in found];"
        "maps = [line.split(maxsplit=5)[5].rstrip() for line in open('/proc/self/maps') if '.so' in line];"
        "print(len(found), {path for path in maps if not path.startswith(sys.prefix)} or '{}')"
    )
    number, foreign = host.run(f"{layout.CURRENT}/bin/python3", "-c", program).stdout.split(maxsplit=1)
    assert int(number) > 50
    assert foreign == "{}\n"


def test_authorities_are_the_hosts_where_it_has_some(host: BareHost) -> None:
    shown = (f"{layout.CURRENT}/bin/python3", "-c", "import os; print(os.environ['SSL_CERT_FILE'])")
    for place in ("/etc/ssl/ca-bundle.pem", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/certs/ca-certificates.crt"):
        host.path(place).parent.mkdir(parents=True, exist_ok=True)
        host.path(place).touch()
        assert host.run(*shown).stdout == f"{place}\n"
    given = host.run(*shown, env={"SSL_CERT_FILE": "/given"})
    assert given.stdout == "/given\n"


def test_it_runs_wherever_it_was_relocated_to(made: Made, tmp_path: Path) -> None:
    place = f"/srv/a directory/{'x' * 100}"
    program = f"{place}/bin/crun"
    with unpacked(made, tmp_path, place) as host:
        # Its loader is in the prefix, where nothing is.
        with pytest.raises(AssertionError):
            host.run(program, "--version")
        left = host.path(f"{place}/bin/.relocate-crun")
        left.write_text("of one that was killed")
        assert "5 programs" in host.run(f"{place}/relocate").stdout
        assert not left.exists()
        for command in ("crun", "conmon", "nft", "forge"):
            host.run(f"{place}/bin/{command}", "--version")
        prefix = host.run(f"{place}/bin/python3", "-c", "import sys; print(sys.prefix)").stdout
        assert prefix == f"{place}\n"
        assert "0 programs" in host.run(f"{place}/relocate").stdout
        host.run(f"{place}/relocate", PREFIX)
        said = json.loads(host.path(f"{place}/manifest.json").read_text())
        assert wrong(said, host.path(place)) == []
        host.run(f"{place}/relocate", f"/{'x' * layout.FIELD}", code=1)
        for refused in ("relative", "/srv/a:b", "/srv/$ORIGIN"):
            host.run(f"{place}/relocate", refused, code=2)


def test_the_manifest_tells_every_file_and_link(host: BareHost) -> None:
    said = json.loads(host.path(f"{PREFIX}/manifest.json").read_text())
    root = host.path(PREFIX)
    assert wrong(said, root) == []
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_symlink() or not path.is_dir()}
    assert there - {"manifest.json"} == {*said["files"], *said["links"]}
    assert {"forge", "forgeoned"} <= set(said["commands"])
    bill = json.loads((root / "share/sbom.spdx.json").read_text())
    scanned = {package["name"] for package in bill["packages"] if "primaryPackagePurpose" not in package}
    assert scanned == {package["name"] for package in said["packages"]}


def wrong(said: dict[str, Any], root: Path) -> list[str]:
    """What is not as the manifest says."""
    found = []
    for name, file in said["files"].items():
        content = (root / name).read_bytes()
        mode = f"{(root / name).stat().st_mode & 0o777:04o}"
        if (len(content), hashlib.sha256(content).hexdigest(), mode) != (file["size"], file["sha256"], file["mode"]):
            found.append(name)
    return found + [name for name, target in said["links"].items() if os.readlink(root / name) != target]


def test_the_package_is_installed_and_removed(made: Made, bare: BareHost) -> None:
    before = files(bare)
    bring(made.package, bare)
    assert bare.run("forge", "--version").stdout == f"forge {VERSION}\n"
    assert os.readlink(bare.path(layout.CURRENT)) == f"versions/{VERSION}"
    assert bare.run("forge", "node", "install", "--dry-run", "--kubelet=none", "--service=none", "--replace").stdout
    unit = bare.path("/lib/systemd/system/forgeoned.service").read_text()
    assert f"ExecStart={PREFIX}/bin/forgeoned\n" in unit
    enabled = bare.path("/etc/systemd/system/multi-user.target.wants/forgeoned.service")
    assert os.readlink(enabled) == "/lib/systemd/system/forgeoned.service"
    assert ".venv" not in unit
    bare.path("/etc/forgeone/config.toml").write_text("# an administrator's\n")
    bare.run("dpkg", "--remove", "forgeone")
    assert bare.path("/etc/forgeone/config.toml").exists()
    assert not bare.path("/opt/forgeone").exists()
    bare.run("dpkg", "--purge", "forgeone")
    assert files(bare) == before


def bring(package: Path, host: BareHost) -> None:
    shutil.copyfile(package, host.path("/root/forgeone.deb"))
    # Not syncing each file: this host's power does not fail.
    host.run("dpkg", "--force-unsafe-io", "--install", "/root/forgeone.deb")
    host.path("/root/forgeone.deb").unlink()


def files(host: BareHost) -> set[str]:
    """But dpkg's own. It removes a directory that no other package has and that is empty, as /opt is here."""
    found = host.run("find", "/", "-xdev", "-path", "/var/lib/dpkg", "-prune", "-o", "-print").stdout
    return {*found.splitlines()} - {"/opt", "/var/log/dpkg.log"}


def small(version: str, directory: Path) -> Path:
    """A package of that version with one program, a shell that needs no library."""
    root = directory / version
    (root / "bin").mkdir(parents=True)
    shutil.copyfile("/bin/busybox", root / "bin" / "sleep")
    (root / "bin" / "sleep").chmod(0o755)
    (root / layout.UNIT).parent.mkdir(parents=True)
    (root / layout.UNIT).write_text("[Unit]\n")
    (root / layout.MANIFEST).write_text("{}\n")
    made = directory / f"{version}.deb"
    deb.write(root, made, Stamp(version, layout.arch("amd64" if os.uname().machine == "x86_64" else "arm64"), 0))
    return made


def test_an_upgraded_package_keeps_a_version_until_no_pod_needs_it(bare: BareHost, tmp_path: Path) -> None:
    first, second, third = (small(version, tmp_path) for version in ("1.0", "1.1", "1.2"))
    bring(first, bare)
    # What a pod's process is: it goes on, and may still open files of its version.
    pod = subprocess.Popen(bare.command(f"{layout.VERSIONS}/1.0/bin/sleep", "600"))
    try:
        bring(second, bare)
        assert os.readlink(bare.path(layout.CURRENT)) == "versions/1.1"
        assert bare.path(f"{layout.VERSIONS}/1.0/manifest.json").exists()
        bring(third, bare)
        assert versions(bare) == {"1.0", "1.2"}
        bring(second, bare)
        assert versions(bare) == {"1.0", "1.1"}
    finally:
        pod.kill()
        pod.wait()
    bring(third, bare)
    assert versions(bare) == {"1.2"}
    bare.run("dpkg", "--purge", "forgeone")
    assert not bare.path("/opt/forgeone").exists()


def test_a_package_leaves_a_node_that_the_installer_has_set_up_to_it(bare: BareHost, tmp_path: Path) -> None:
    first, second = (small(version, tmp_path) for version in ("1.0", "1.1"))
    bring(first, bare)
    record = bare.path("/var/lib/forgeone-node/installed.json")
    record.parent.mkdir()
    record.touch()
    unit = bare.path("/etc/systemd/system/forgeoned.service")
    unit.write_text(f"[Service]\nExecStart={layout.VERSIONS}/1.0/bin/forgeoned\n")
    bring(second, bare)
    assert os.readlink(bare.path(layout.CURRENT)) == "versions/1.0"
    assert versions(bare) == {"1.0", "1.1"}
    bare.run("dpkg", "--remove", "forgeone", code=1)
    assert versions(bare) == {"1.0", "1.1"}
    record.unlink()
    bare.run("dpkg", "--purge", "forgeone")
    assert not bare.path("/opt/forgeone").exists()


def versions(host: BareHost) -> set[str]:
    return set(os.listdir(host.path(layout.VERSIONS)))
