"""``forge run``: an image or a package as a pod of one container, its output shown, its exit code passed on."""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cri.api import runtime_pb2 as cri
from forgeone_shim.cli import client as clients
from forgeone_shim.cli import containers, images, local, logs
from forgeone_shim.cli.client import Client
from forgeone_shim.cli.listing import upstream
from forgeone_shim.cli.pull import credentials, pull
from forgeone_shim.cli.remote import Detach
from forgeone_shim.cli.stream import Session
from forgeone_shim.contract import parse
from forgeone_shim.contract.reader import MAX_DOCUMENT
from forgeone_shim.errors import InvalidInput, syscall_error
from forgeone_shim.package import media, project
from forgeone_shim.package.file import SUFFIX
from forgeone_shim.registry.modules import is_platform

NAMESPACE = "forge"
_HANDLER = "forgeone-"
# What the kernel's scheduler and every other runtime take, in microseconds.
_PERIOD = 100_000
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
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


def anywhere(args: argparse.Namespace) -> int:
    """Run on the node whose socket was named; else on this host's, or one that is started for this call.

    What such a one ran is removed with it: nobody would be there to be asked for it.
    """
    if args.socket:
        with Client(args.socket) as client:
            return command(client, args)
    with local.forgeoned(args.config, clients.DEFAULT_SOCKET) as (path, temporary), Client(path) as client:
        if temporary and args.detach:
            raise InvalidInput("--detach", "no forgeoned runs that would look after it", fix="start forgeoned")
        args.rm = args.rm or temporary
        return command(client, args)


def command(client: Client, args: argparse.Namespace) -> int:
    """Pull or import if need be, run, show. Interrupted, or failed before the start, it takes the pod away again."""
    if args.engine:
        if args.handler:
            raise InvalidInput("--engine", "has no meaning with --handler")
        args.handler = f"{_HANDLER}{args.engine}"
    # Beside another runtime pods that name no handler may be that one's, and its images are none of ours.
    ours = f"{_HANDLER}native" if upstream(client).socket else ""
    plan = make_plan(args, uid=str(uuid.uuid4()), suffix=secrets.token_hex(3))
    plan = _fitted(client, plan, _image(client, args, ours), ours)
    with ExitStack() as undo:
        pod_id, container_id = _create(client, plan, undo, args.stop_timeout)
        if plan.container.tty or plan.container.stdin:
            code = _converse(client, container_id, plan, None if args.rm else undo)
        else:
            client.call(client.runtime.StartContainer, cri.StartContainerRequest(container_id=container_id))
            if args.detach:
                undo.pop_all()
                sys.stdout.write(f"{pod_id}\n")
                return 0
            path = plan.logs / plan.container.log_path
            code = int(logs.follow(client, container_id, path, logs.Printer()).exit_code)
        if not args.rm:
            undo.pop_all()
    return code


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
    if args.detach and (args.stdin or args.tty):
        raise InvalidInput("--detach", "has no meaning with -i or -t")
    if args.tty and args.stdin and not os.isatty(0):
        raise InvalidInput("--tty", "standard input is not a terminal", fix="leave out -t, or -i")
    container.stdin, container.stdin_once, container.tty = args.stdin, args.stdin, args.tty
    if memory := project.amount(args.memory or 0, "--memory"):
        container.linux.resources.memory_limit_in_bytes = memory
    if cpu := project.millicores(args.cpus or 0, "--cpus"):
        container.linux.resources.cpu_period, container.linux.resources.cpu_quota = _PERIOD, cpu * _PERIOD // 1000
    if container.linux.HasField("resources"):
        # As a kubelet tells it: a machine is as large as its pod.
        pod.linux.resources.CopyFrom(container.linux.resources)
    container.mounts.extend(_mount(text) for text in args.volume)
    if args.contract:
        pod.annotations[parse.PREFIX + parse.DOCUMENT] = _contract(Path(args.contract))
    return Plan(pod, container, args.handler, directory)


def _fitted(client: Client, plan: Plan, image_id: str, ours: str) -> Plan:
    """The plan for what the image turned out to be: its handler, where none was asked for; otherwise it is ``ours``."""
    plan.container.image.image = image_id
    request = cri.ImageStatusRequest(image=cri.ImageSpec(image=image_id, runtime_handler=ours), verbose=True)
    platform, artifact = _said(client.call(client.images.ImageStatus, request).info)
    name = plan.container.image.user_specified_image
    if is_file(name) and name.endswith(SUFFIX) and artifact != media.ARTIFACT:
        # Of an image nobody asks who signed it.
        raise InvalidInput("image", f"{name} holds an image, and no package", fix="forge images import, then name it")
    if plan.handler:
        return plan
    return replace(plan, handler=f"{_HANDLER}wasm" if is_platform(*(*platform.split("/"), "")[:2]) else ours)


def _said(info: Any) -> tuple[str, str]:
    """What an image is for, and which artifact it is."""
    try:
        found = json.loads(info["info"])
        return str(found.get("platform", "")), str(found.get("artifact", ""))
    except (KeyError, ValueError, TypeError, AttributeError):
        return "", ""


def _converse(client: Client, container_id: str, plan: Plan, undo: ExitStack | None) -> int:
    """Be its streams from before its first instruction to its end; let go of it, its pod stays.

    Without an ``undo`` it cannot be let go of: nobody would be there to remove it.
    """
    stdin, tty = plan.container.stdin, plan.container.tty
    request = cri.AttachRequest(container_id=container_id, stdin=stdin, tty=tty, stdout=True, stderr=not tty)
    with ExitStack() as stack:
        session = Session(client, client.call(client.runtime.Attach, request).url, stack, stdin=stdin, tty=tty)
        if session.terminal is not None and undo is not None:
            session.detach = Detach()
        session.settle()
        client.call(client.runtime.StartContainer, cri.StartContainerRequest(container_id=container_id))
        detached = session.run()
        if not detached:
            session.remote.outcome()
    if detached and undo is not None:
        undo.pop_all()
        sys.stderr.write("\ndetached; it goes on\n")
        return 0
    return int(logs.ended(client, container_id).exit_code)


def _create(client: Client, plan: Plan, undo: ExitStack, grace: int) -> tuple[str, str]:
    try:
        (plan.logs / plan.container.log_path).parent.mkdir(parents=True, mode=0o750)
    except OSError as error:
        raise syscall_error("mkdir", plan.logs, error) from None
    undo.callback(shutil.rmtree, plan.logs, ignore_errors=True)
    # Before it is there: an interrupt may come when it is, and its id has not been heard of yet.
    undo.callback(_remove, client, plan.pod.metadata.uid, grace)
    request = cri.RunPodSandboxRequest(config=plan.pod, runtime_handler=plan.handler)
    pod_id = client.call(client.runtime.RunPodSandbox, request).pod_sandbox_id
    create = cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=plan.container, sandbox_config=plan.pod)
    return pod_id, client.call(client.runtime.CreateContainer, create).container_id


def _remove(client: Client, uid: str, grace: int) -> None:
    for pod_id in [pod.id for pod in client.pods() if pod.metadata.uid == uid]:
        # A second ctrl-c cuts the grace period short, not the removal.
        with suppress(KeyboardInterrupt, SystemExit):
            containers.stop_pod(client, pod_id, grace)
        with _undisturbed():
            client.call(client.runtime.StopPodSandbox, cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))
            client.call(client.runtime.RemovePodSandbox, cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No signal that would end this process does so while the block runs."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _image(client: Client, args: argparse.Namespace, ours: str) -> str:
    """The id of the image: of a package's file, or pulled when it is not here or when ``--pull always`` asks."""
    if is_file(args.image):
        found = images.send(client, args.image)
        if len(found) != 1:
            raise InvalidInput(
                "image", f"{args.image} holds {len(found)} images", fix="forge images import, then name one"
            )
        return str(found[0].id)
    if args.pull != "always":
        wanted = cri.ImageSpec(image=args.image, runtime_handler=args.handler or ours)
        request = cri.ImageStatusRequest(image=wanted)
        here = client.call(client.images.ImageStatus, request).image.id
        if here:
            return str(here)
        if args.pull == "never":
            raise InvalidInput("image", f"{args.image!r} is not on this node", fix="leave out --pull never")
    return str(pull(client, args.image, credentials(args), args.handler, quiet=args.quiet).id)


def is_file(image: str) -> bool:
    """Whether a path is meant, and no name: it looks like one, or is a package's."""
    return image.startswith(("/", "./", "../")) or (image.endswith(SUFFIX) and Path(image).is_file())


def _base_name(image: str) -> str:
    last = image.removesuffix(SUFFIX).partition("@")[0].rpartition("/")[2].partition(":")[0]
    return _NOT_IN_A_NAME.sub("-", last.lower()).strip("-")[:40] or "image"


def _environment(text: str) -> Any:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidInput("--env", f"{text!r} is not KEY=VALUE")
    return cri.KeyValue(key=key, value=value.encode())


def _mount(text: str) -> Any:
    host, _, rest = text.partition(":")
    inside, _, mode = rest.partition(":")
    if not host or not inside.startswith("/") or mode not in {"", "ro", "rw"}:
        raise InvalidInput("--volume", f"{text!r} is not PATH:CONTAINERPATH[:ro]")
    if not Path(host).exists():
        raise InvalidInput("--volume", f"{host!r} does not exist")
    return cri.Mount(host_path=str(Path(host).absolute()), container_path=inside, readonly=mode == "ro")


def _contract(path: Path) -> str:
    """A file's content, which is a contract: what is wrong with it is said before there is a pod."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT + 1)
        parse.read(str(path), data, ())
        return data.decode()
    except OSError as error:
        raise InvalidInput("--contract", f"{path}: {error.strerror}") from None


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
