"""A containerd of one's own beside any other: Debian's, with its runc and its CNI plugins."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import grpc

from cri.api import runtime_pb2 as cri
from cri.api import runtime_pb2_grpc as cri_grpc
from hack.lab import leaks, notify
from hack.lab.settings import patient

PLUGINS = Path("/usr/lib/cni")
_STOP_SECONDS = 30.0
# What containerd, its shims and the CNI plugins make outside of the directories they are given.
_SHARED = ("/run/containerd", "/var/lib/cni", "/sys/fs/cgroup/k8s.io")
_SHARED_CGROUPS = "*/k8s.io"
_CONFIG = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.internal.v1.restart"]
[grpc]
  address = "{directory}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{directory}/net.d"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{certs}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      Root = "{directory}/runc"
"""


def missing() -> str:
    """Why there can be none on this host; empty: there can."""
    programs = [name for name in ("containerd", "runc") if shutil.which(name) is None]
    if programs or not (PLUGINS / "bridge").exists():
        return "first: apt-get install containerd runc containernetworking-plugins"
    return ""


class Containerd:
    """A containerd in a directory that must not be there yet. :meth:`close` leaves nothing of it.

    :param pause: reference of the image of its pods' first process.
    :param certs: a ``certs.d`` directory.
    """

    def __init__(self, directory: Path, *, pause: str, certs: str) -> None:
        tag, low = secrets.token_hex(3), secrets.randbelow(200) + 20
        self.directory, self._bridge = directory, f"brc{tag}"
        self._marks = leaks.Marks(directory=str(directory), link_prefix=self._bridge, cgroup_root=f"bench-{tag}")
        (directory / "net.d").mkdir(parents=True)
        network = _network(directory, self._bridge, f"10.{low}.0.0/16")
        (directory / "net.d/10-bench.conflist").write_text(json.dumps(network))
        config = _CONFIG.format(
            directory=directory, pause=pause, plugins=PLUGINS, certs=certs, runc=shutil.which("runc")
        )
        (directory / "config.toml").write_text(config)
        self._there = {path for path in _shared() if path.exists()}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> str:
        """Its CRI socket."""
        return str(self.directory / "containerd.sock")

    def start(self) -> Containerd:
        """Start it and wait until it says that it is ready."""
        argv = ["containerd", "--config", str(self.directory / "config.toml")]
        self._process = notify.start(argv, os.environ, self.directory / "containerd.log")
        return self

    def kill(self) -> None:
        """``kill -9``; its pods go on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM; its pods go on. One that does not run stays so."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patient(_STOP_SECONDS))

    def remove_pods(self) -> None:
        """Stop and remove every pod."""
        with grpc.insecure_channel(f"unix://{self.socket}") as channel:
            runtime = cri_grpc.RuntimeServiceStub(channel)
            for pod in runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:
                runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=patient(60))
                runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id), timeout=patient(60))

    def close(self) -> None:
        """Stop it and take away all that it has made."""
        self.stop()
        leaks.sweep(self._marks, self._bridge, f"bench_{self._bridge.removeprefix('brc')}")
        for path in _shared():
            if path not in self._there:
                _remove_empty(path)


def _shared() -> list[Path]:
    return [*map(Path, _SHARED), *Path("/sys/fs/cgroup").glob(_SHARED_CGROUPS)]


def _remove_empty(top: Path) -> None:
    """Only what holds nothing: another containerd's things stay."""
    for path in (*sorted(top.rglob("*/"), reverse=True), top):
        with suppress(OSError):
            path.rmdir()


def _network(directory: Path, bridge: str, subnet: str) -> dict[str, object]:
    """What a single node's containerd is usually given: a bridge, addresses, masquerading, host ports."""
    addresses: dict[str, object] = {"type": "host-local", "dataDir": str(directory / "ipam")}
    addresses |= {"ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}
    plugin = {"type": "bridge", "bridge": bridge, "isGateway": True, "ipMasq": True, "ipam": addresses}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    return {"cniVersion": "0.4.0", "name": "bench", "plugins": [plugin, portmap]}
