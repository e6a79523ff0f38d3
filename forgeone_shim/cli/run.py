"""``forge run``: an image as a pod of one container, its output shown, its exit code passed on."""

from __future__ import annotations

import argparse
import re
import secrets
import shutil
import sys
import uuid
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cri.api import runtime_pb2 as cri
from forgeone_shim.cli import containers, logs
from forgeone_shim.cli.client import Client
from forgeone_shim.cli.pull import credentials, pull
from forgeone_shim.errors import InvalidInput, syscall_error

NAMESPACE = "forge"
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]+")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_PORT = re.compile(r"(?:(?P<ip>\[[0-9a-fA-F:]+\]|[0-9.]+):)?(?P<host>\d+):(?P<pod>\d+)(?:/(?P<protocol>\w+))?")
_PROTOCOLS = {"tcp": cri.TCP, "udp": cri.UDP, "sctp": cri.SCTP}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of CRI; ``logs`` is the pod's log directory."""

    pod: Any
    container: Any
    handler: str
    logs: Path


def command(client: Client, args: argparse.Namespace) -> int:
    """Pull if need be, run, show. Interrupted, or failed before the start, it takes the pod away again."""
    plan = make_plan(args, uid=str(uuid.uuid4()), suffix=secrets.token_hex(3))
    plan.container.image.image = _image(client, args)
    with ExitStack() as undo:
        pod_id, container_id = _start(client, plan, undo, args.stop_timeout)
        if args.detach:
            undo.pop_all()
            sys.stdout.write(f"{pod_id}\n")
            return 0
        path = plan.logs / plan.container.log_path
        status = logs.follow(client, container_id, path, logs.Printer())
        if not args.rm:
            undo.pop_all()
    return int(status.exit_code)


def make_plan(args: argparse.Namespace, *, uid: str, suffix: str) -> Plan:
    """CRI configurations from the command line."""
    name = args.name or f"{_base_name(args.image)}-{suffix}"
    if not _NAME.fullmatch(name):
        raise InvalidInput("--name", f"{name!r} is not lower-case letters, digits, '-' and '.', at most 63")
    directory = Path(args.log_dir).absolute() / f"{NAMESPACE}_{name}_{uid}"
    network = cri.NODE if args.host_network else cri.POD
    if args.host_network and args.publish:
        raise InvalidInput("--publish", "has no meaning with --host-network")
    namespaces = cri.NamespaceOption(network=network, pid=cri.CONTAINER, ipc=cri.POD)
    seccomp = cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault)
    pod = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, uid=uid, namespace=NAMESPACE),
        hostname="" if args.host_network else name,
        log_directory=str(directory),
        port_mappings=[_port(text) for text in args.publish],
        annotations={containers.LOG_ANNOTATION: str(directory)},
        linux=cri.LinuxPodSandboxConfig(
            security_context=cri.LinuxSandboxSecurityContext(namespace_options=namespaces, seccomp=seccomp)
        ),
    )
    container = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=name),
        image=cri.ImageSpec(image=args.image, user_specified_image=args.image),
        command=[args.entrypoint] if args.entrypoint else [],
        args=args.command,
        envs=[_environment(text) for text in args.env],
        log_path=f"{name}/0.log",
        linux=cri.LinuxContainerConfig(
            security_context=cri.LinuxContainerSecurityContext(namespace_options=namespaces, seccomp=seccomp)
        ),
    )
    return Plan(pod, container, args.handler, directory)


def _start(client: Client, plan: Plan, undo: ExitStack, grace: int) -> tuple[str, str]:
    try:
        (plan.logs / plan.container.log_path).parent.mkdir(parents=True, mode=0o750)
    except OSError as error:
        raise syscall_error("mkdir", plan.logs, error) from None
    undo.callback(shutil.rmtree, plan.logs, ignore_errors=True)
    request = cri.RunPodSandboxRequest(config=plan.pod, runtime_handler=plan.handler)
    pod_id = client.call(client.runtime.RunPodSandbox, request).pod_sandbox_id
    undo.callback(_remove, client, pod_id, grace)
    create = cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=plan.container, sandbox_config=plan.pod)
    container_id = client.call(client.runtime.CreateContainer, create).container_id
    client.call(client.runtime.StartContainer, cri.StartContainerRequest(container_id=container_id))
    return pod_id, container_id


def _remove(client: Client, pod_id: str, grace: int) -> None:
    # A second ctrl-c cuts the grace period short, not the removal.
    with suppress(KeyboardInterrupt):
        containers.stop_pod(client, pod_id, grace)
    client.call(client.runtime.StopPodSandbox, cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    client.call(client.runtime.RemovePodSandbox, cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id))


def _image(client: Client, args: argparse.Namespace) -> str:
    """The id of the image, pulled when it is not here or when ``--pull always`` asks."""
    if args.pull != "always":
        wanted = cri.ImageSpec(image=args.image, runtime_handler=args.handler)
        request = cri.ImageStatusRequest(image=wanted)
        here = client.call(client.images.ImageStatus, request).image.id
        if here:
            return str(here)
        if args.pull == "never":
            raise InvalidInput("image", f"{args.image!r} is not on this node", fix="leave out --pull never")
    return str(pull(client, args.image, credentials(args), args.handler, quiet=args.quiet).id)


def _base_name(image: str) -> str:
    last = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    return _NOT_IN_A_NAME.sub("-", last.lower()).strip("-")[:40] or "image"


def _environment(text: str) -> Any:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidInput("--env", f"{text!r} is not KEY=VALUE")
    return cri.KeyValue(key=key, value=value.encode())


def _port(text: str) -> Any:
    found = _PORT.fullmatch(text)
    protocol = _PROTOCOLS.get((found["protocol"] or "tcp").lower()) if found else None
    if found is None or protocol is None or not all(0 < int(found[side]) < 65536 for side in ("host", "pod")):
        raise InvalidInput("--publish", f"{text!r} is not [IP:]HOSTPORT:PORT[/tcp|udp|sctp]")
    return cri.PortMapping(
        protocol=protocol,
        container_port=int(found["pod"]),
        host_port=int(found["host"]),
        host_ip=(found["ip"] or "").strip("[]"),
    )
