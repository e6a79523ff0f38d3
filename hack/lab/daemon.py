"""A forgeoned of one's own: every path, name and range differs from any other's on the host."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from cri.api import runtime_pb2 as cri
from cri.api import runtime_pb2_grpc as cri_grpc
from forgeone_shim.config.loader import to_toml
from forgeone_shim.config.model import (
    CniConfig,
    Config,
    ContractConfig,
    LogConfig,
    NativeConfig,
    NetworkConfig,
    RegistryConfig,
)
from forgeone_shim.kernel import cgroups
from forgeone_shim.kernel.cgroups import Driver
from hack.lab import leaks, notify
from hack.lab.settings import cgroup_driver, cgroup_host, patient

REPOSITORY = Path(__file__).resolve().parents[2]
_READY_SECONDS, _STOP_SECONDS = 30.0, 30.0
# A channel of its own, which finds a daemon that came back at once.
_CHANNEL = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),
)
_SETTLE_SECONDS = 3.0


class Daemon:
    """A forgeoned on a configuration of its own; the directory (below ``$TMPDIR``) is removed by :meth:`close`.

    :param registries: registries to pull from over plain HTTP (``127.0.0.1:5000``); the first is also the mirror of
        every other host.
    :param environ: more environment for the process.
    :param settings: keys of the configuration that differ, by their dotted names (``native.log_rate``).
    :param repository: the checkout whose forgeoned it is.
    :param program: the beginning of the command line of another forgeoned than that.
    """

    def __init__(
        self,
        registries: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        settings: Mapping[str, object] | None = None,
        repository: Path = REPOSITORY,
        program: Sequence[str] = (),
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="forgeone-lab-"))
        # As /run and /var/lib are: the root of a pod with a user namespace passes through to its own.
        self.directory.chmod(0o711)
        self.tag = secrets.token_hex(3)
        self._environ, self._repository = dict(environ or {}), repository
        self._program = list(program) or [sys.executable, "-m", "cri.daemon"]
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None
        self._lock = threading.Lock()
        self.config = _changed(self._configuration(), settings or {})
        Path(self.config.contract.policies_dir).mkdir(mode=0o755, exist_ok=True)
        self.config_file = self.directory / "config.toml"
        self.config_file.write_text(to_toml(self.config))
        self.log = self.directory / "forgeoned.log"
        self._trust(registries)

    @property
    def socket(self) -> str:
        """The CRI socket's path."""
        return self.config.socket

    @property
    def pid(self) -> int:
        """The running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.poll() is None

    @property
    def channel(self) -> grpc.Channel:
        """A channel to the socket, made on first use."""
        with self._lock:
            if self._channel is None:
                self._channel = grpc.insecure_channel(f"unix://{self.socket}", options=_CHANNEL)
            return self._channel

    @property
    def runtime(self) -> cri_grpc.RuntimeServiceStub:
        """CRI RuntimeService."""
        return cri_grpc.RuntimeServiceStub(self.channel)

    @property
    def images(self) -> cri_grpc.ImageServiceStub:
        """CRI ImageService."""
        return cri_grpc.ImageServiceStub(self.channel)

    def start(self) -> Daemon:
        """Start the process and wait until it says READY=1 (sd_notify(3)).

        :raises RuntimeError: it ended, or said nothing in time; carries the end of its log.
        """
        argv = [*self._program, "--config", str(self.config_file)]
        self._process = notify.start(argv, {**_inherited(), **self._environ}, self.log, cwd=self._repository)
        # Calls that others make while there is no daemon leave a channel that tries again only after a while.
        grpc.channel_ready_future(self.channel).result(patient(_READY_SECONDS))
        return self

    def kill(self) -> None:
        """``kill -9``: the process gets no chance to tidy up."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM and wait; returns the exit code."""
        return self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Stop and start anew on the same configuration."""
        self.stop()
        self.start()

    def remove_pods(self) -> None:
        """Stop and remove every pod."""
        for pod in self.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:
            self.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=patient(60))
            self.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id), timeout=patient(60))

    def left(self, expected: Sequence[str] = ()) -> list[str]:
        """What of this forgeoned's pods is still on the host, a line each: mounts, links, cgroups, processes.

        The kernel deletes links, and ForgeOne what an ended container held, a moment after the call that causes it has
        returned: what is not expected must stay for a while to count.
        """
        ignore = {os.getpid()}
        if self._process is not None:
            # Its fork server stays as long as it does.
            ignore |= {self._process.pid, *leaks.fork_servers(str(self.directory))}

        def found() -> list[str]:
            alive = leaks.watches(self._process.pid) if self._process is not None else ()
            return leaks.left(self.marks, ignore | {*alive})

        until = time.monotonic() + patient(_SETTLE_SECONDS)
        while (now := found()) != list(expected) and time.monotonic() < until:
            time.sleep(0.05)
        return now

    def close(self) -> None:
        """Stop the process and take away all that it may have left: mounts, bridge, nftables table, cgroup, files."""
        self.kill()
        leaks.sweep(self.marks, self.config.network.bridge, self.config.network.table)
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def marks(self) -> leaks.Marks:
        """By what is found what belongs to it."""
        top = self.config.cgroup_root
        if cgroup_host().driver is Driver.SYSTEMD:
            top = cgroups.relative(cgroups.slice_name(top))
        return leaks.Marks(
            directory=str(self.directory),
            link_prefix=self.config.network.link_prefix,
            cgroup_root=top.strip("/"),
        )

    def _configuration(self) -> Config:
        low, high = secrets.randbelow(200) + 20, secrets.randbelow(256)
        return Config(
            root=str(self.directory / "root"),
            state=str(self.directory / "state"),
            socket=str(self.directory / "forgeone.sock"),
            cgroup_root=f"/forgeone-{self.tag}",
            handlers_dir=str(self.directory / "handlers.d"),
            log=LogConfig(level="debug", format="json"),
            native=NativeConfig(cgroup_driver=cgroup_driver()),
            registry=RegistryConfig(config_path=str(self.directory / "certs.d")),
            cni=CniConfig(conf_dir=str(self.directory / "cni")),
            contract=ContractConfig(
                policies_dir=str(self.directory / "policies.d"), issuers_dir=str(self.directory / "issuers.d")
            ),
            network=NetworkConfig(
                bridge=f"brf{self.tag}",
                table=f"forgeone_{self.tag}",
                link_prefix=f"f{self.tag}",
                ipv4=f"10.{low}.{high}.0/24",
                ipv6=f"fd{secrets.token_hex(1)}:{secrets.token_hex(2)}:{secrets.token_hex(2)}:1::/64",
            ),
        )

    def _trust(self, registries: Sequence[str]) -> None:
        certs = Path(self.config.registry.config_path)
        for registry in registries:
            _write(certs / registry / "hosts.toml", f'server = "http://{registry}"\n')
        if registries:
            mirror = f'[host."http://{registries[0]}"]\ncapabilities = ["pull", "resolve"]\n'
            _write(certs / "_default" / "hosts.toml", mirror)

    def _end(self, number: int) -> int:
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            return process.wait(patient(_STOP_SECONDS))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _changed(config: Config, settings: Mapping[str, object]) -> Config:
    for path, value in settings.items():
        section, dot, name = path.partition(".")
        inner: Any = getattr(config, section)
        change: Any = {section: replace(inner, **{name: value}) if dot else value}
        config = replace(config, **change)
    return config


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FORGEONE_")}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(text)
