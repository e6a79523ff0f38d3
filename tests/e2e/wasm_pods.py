"""Short ways to say what a test's WebAssembly pod looks like over CRI."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cri.api import runtime_pb2 as pb
from hack.lab import images, leaks
from hack.lab.daemon import Daemon
from hack.lab.settings import patient
from tests.e2e.pods import Pod

HANDLER = "forgeone-wasm"
COMPAT = {"architecture": "wasm", "os": "wasi"}


@dataclass
class WasmPod(Pod):
    """A pod of the handler :data:`HANDLER`; its containers run what their images say."""

    annotations: Mapping[str, str] = field(default_factory=dict)

    def run(self, timeout: float = 60) -> WasmPod:
        """RunPodSandbox."""
        self.config.annotations.update(self.annotations)
        request = pb.RunPodSandboxRequest(config=self.config, runtime_handler=HANDLER)
        self.id = self.daemon.runtime.RunPodSandbox(request, timeout=patient(timeout)).pod_sandbox_id
        return self

    def container(self, image: str, *command: str, name: str = "main", attempt: int = 0) -> pb.ContainerConfig:
        """A container's configuration; without a command, the image's own."""
        config = super().container(image, *command, name=name, attempt=attempt)
        if not command:
            del config.command[:]
        return config


def image(modules: Mapping[str, bytes], *entrypoint: str, extra: tuple[images.Entry, ...] = ()) -> images.BuiltImage:
    """A compat image with these files, which runs the first one unless told otherwise."""
    entries = [images.Entry(name, data, 0o755) for name, data in modules.items()]
    config = {"Entrypoint": list(entrypoint) or [f"/{next(iter(modules))}"]}
    return images.build([images.layer([*entries, *extra])], config, **COMPAT)


def pull(daemon: Daemon, reference: str) -> str:
    """PullImage for pods of the handler."""
    request = pb.PullImageRequest(image=pb.ImageSpec(image=reference, runtime_handler=HANDLER))
    daemon.images.PullImage(request, timeout=patient(120))
    return reference


def processes(container_id: str, title: str = "forgeone-") -> list[int]:
    """The processes of a container, or of a pod's init: what the zygote forked for it."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else [b""]
            if words[0].startswith(title.encode()) and container_id.encode() in words:
                found.append(int(entry.name))
    return found


def zygote(daemon: Daemon) -> int:
    """The process that guests are forked from."""
    for pid in leaks.fork_servers(str(daemon.directory)):
        if b"engines.wasm.zygote" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("no zygote")
