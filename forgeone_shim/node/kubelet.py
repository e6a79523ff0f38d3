"""Which CRI socket a node's kubelet uses, where that is said, and how it is said otherwise: pure.

A flag wins over the files of ``--config-dir``, these over the file of ``--config``, and without any of them it is the
default (kubelet-config.v1beta1, ``containerRuntimeEndpoint``). A change rewrites that one value and leaves every other
byte; it is held against the same reading before it is made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import yaml

from forgeone_shim.errors import FailedPrecondition, InvalidInput, NotFound
from forgeone_shim.node import layout, service
from forgeone_shim.node.service import Word
from forgeone_shim.node.tree import Changed, Tree

UNIT: Final = "kubelet.service"
KUBEADM_FLAGS: Final = "/var/lib/kubelet/kubeadm-flags.env"
KUBEADM_INSTANCE: Final = "/var/lib/kubelet/instance-config.yaml"
"""What kubeadm (1.32+) sets in the kubelet's configuration each time it writes that."""

DEFAULT_ENDPOINT: Final = "unix:///run/containerd/containerd.sock"
_KEY: Final = "containerRuntimeEndpoint"
_FLAG: Final = "container-runtime-endpoint"
_IMAGES: Final = "image-service-endpoint"
_IMAGES_KEY: Final = "imageServiceEndpoint"
_VALUED: Final = frozenset({"config", "config-dir", _FLAG, _IMAGES, "healthz-port", "healthz-bind-address"})
_HEALTH_PORT: Final = 10248
_VENDORS: Final = ("/usr/", "/lib/", "/run/")

# Their kubelet is a part of another program, which gives it its runtime.
_DISTRIBUTIONS: Final = {
    "k3s.service": "k3s",
    "k3s-agent.service": "k3s",
    "rke2-server.service": "RKE2",
    "rke2-agent.service": "RKE2",
    "k0scontroller.service": "k0s",
    "k0sworker.service": "k0s",
    "snap.microk8s.daemon-kubelite.service": "MicroK8s",
}

_IN_FLAGS: Final = re.compile(r"(--container[-_]runtime[-_]endpoint(?:=|[ \t]+))(['\"]?)([^\s'\"\\]+)(\2)")
_IN_CONFIG: Final = re.compile(rf"^(['\"]?){_KEY}\1[ \t]*:.*$", re.MULTILINE)
_IN_JSON: Final = re.compile(rf'("{_KEY}"\s*:\s*)(?:"(?:[^"\\]|\\.)*"|null)')
_JSON_HEAD: Final = re.compile(r"\s*\{(\s*)")


class Choice(StrEnum):
    """Where the endpoint may be changed."""

    AUTO = "auto"
    KUBEADM = "kubeadm"
    CONFIG = "config"
    NONE = "none"


class Kind(StrEnum):
    """How an endpoint is said."""

    FLAG = "flag"
    CONFIG = "config"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Kubelet:
    """What a kubelet really uses. ``file`` says so (empty: nobody does); ``config`` is its ``--config``."""

    endpoint: str
    kind: Kind
    file: str
    config: str
    images: str
    healthz: tuple[str, int] | None

    @property
    def socket(self) -> str:
        """The path of its CRI socket."""
        return socket_of(self.endpoint)


def socket_of(endpoint: str) -> str:
    """The path in an endpoint; the scheme may be missing.

    :raises InvalidInput: it is none of a unix socket.
    """
    path = endpoint.removeprefix("unix://")
    if not path.startswith("/"):
        raise InvalidInput(_KEY, f"{endpoint!r} is not a unix socket")
    return layout.plain(path)


def discover(tree: Tree) -> Kubelet:
    """The node's kubelet.

    :raises NotFound: no unit runs one. FailedPrecondition: it is not one that can be pointed elsewhere.
    :raises InvalidInput: its files cannot be understood.
    """
    for unit, name in _DISTRIBUTIONS.items():
        if any(tree.read(f"{directory}/{unit}") is not None for directory in service.DIRECTORIES):
            raise FailedPrecondition(
                f"the kubelet is a part of {name} ({unit}), which gives it its runtime",
                fix=f"--kubelet none, and tell {name} itself",
            )
    try:
        words = service.command(tree, UNIT)
    except NotFound as error:
        raise NotFound(error.noun, error.name, where=error.where, fix="--kubelet none, where there is none") from None
    if words[0].text.rpartition("/")[2] != "kubelet":
        raise FailedPrecondition(
            f"{UNIT} executes {words[0].text}, which may say anything to the kubelet",
            fix="--kubelet none, and set its containerRuntimeEndpoint",
        )
    flags = dict(_flags(words))
    config = flags["config"].text if "config" in flags else ""
    files = [config] if config else []
    if "config-dir" in flags:
        files += _dropins(tree, flags["config-dir"].text.rstrip("/"))
    values, origins = dict[str, object](), dict[str, str]()
    for path in files:
        found = _configuration(tree, path)
        values |= found
        origins |= dict.fromkeys(found, path)
    if _FLAG in flags:
        endpoint, kind, file = flags[_FLAG].text, Kind.FLAG, flags[_FLAG].file
    elif text := _string(values, _KEY):
        endpoint, kind, file = text, Kind.CONFIG, origins[_KEY]
    else:
        endpoint, kind, file = DEFAULT_ENDPOINT, Kind.DEFAULT, ""
    images = flags[_IMAGES].text if _IMAGES in flags else _string(values, _IMAGES_KEY)
    return Kubelet(endpoint, kind, file, config, images, _healthz(flags, values))


def pointed(tree: Tree, choice: Choice, endpoint: str) -> Mapping[str, bytes]:
    """The files to write so that the kubelet uses ``endpoint``; none when it does already.

    :raises FailedPrecondition: what it uses is not said where ``choice`` demands, or where nobody may write.
    """
    found = discover(tree)
    if found.images and socket_of(found.images) != socket_of(endpoint):
        raise FailedPrecondition(
            f"the kubelet is told to get images from {found.images}",
            fix=f"remove {_IMAGES_KEY} (--{_IMAGES}): images come over {_KEY}",
        )
    if found.socket == socket_of(endpoint):
        return {}
    path = _place(found, choice)
    content = tree.read(path)
    if content is None:
        raise NotFound("file", path, where="this node")
    if found.kind is Kind.FLAG:
        changes = {path: _in_flags(path, content, found.endpoint, endpoint)}
    else:
        changes = {path: _in_config(path, content, endpoint)}
        instance = tree.read(KUBEADM_INSTANCE)
        if instance is not None and path == "/var/lib/kubelet/config.yaml":
            changes[KUBEADM_INSTANCE] = _in_config(KUBEADM_INSTANCE, instance, endpoint)
    after = discover(Changed(tree, changes))
    if after.socket != socket_of(endpoint):
        raise FailedPrecondition(
            f"the kubelet would still use {after.endpoint} after a change of {path}",
            fix=f"set {_KEY} to {endpoint} and give --kubelet none",
        )
    return changes


def _place(found: Kubelet, choice: Choice) -> str:
    path = found.file or found.config
    if not path:
        raise FailedPrecondition(
            "the kubelet has neither a flag for its endpoint nor a configuration file",
            fix=f"give it one of the two, --{_FLAG} or --config",
        )
    said = f"its endpoint is said by {found.kind} in {path}"
    if choice is Choice.KUBEADM and path != KUBEADM_FLAGS:
        raise FailedPrecondition(f"--kubelet kubeadm: {said}, not in {KUBEADM_FLAGS}", fix="--kubelet auto")
    if choice is Choice.CONFIG and found.kind is Kind.FLAG:
        raise FailedPrecondition(f"--kubelet config: {said}, which wins over its configuration", fix="--kubelet auto")
    if path.startswith(_VENDORS):
        raise FailedPrecondition(f"{said}, which is not an administrator's file", fix="say it in one below /etc")
    return path


def _in_flags(path: str, content: bytes, old: str, new: str) -> bytes:
    text = _decoded(path, content)
    # A comment may show the flag too.
    found = [match for match in _IN_FLAGS.finditer(text) if not _comment(text, match.start()) and match[3] == old]
    if len(found) != 1:
        raise FailedPrecondition(f"{path}: --{_FLAG} {old} stands there {len(found)} times, not once")
    start, end = found[0].span(3)
    return (text[:start] + new + text[end:]).encode()


def _comment(text: str, at: int) -> bool:
    return text[text.rfind("\n", 0, at) + 1 : at].lstrip().startswith(("#", ";"))


def _in_config(path: str, content: bytes, new: str) -> bytes:
    text = _decoded(path, content)
    old = _mapping(path, content)
    changed = (_json(text, old, new) if _is_json(text) else _block(text, new)).encode()
    try:
        same = _mapping(path, changed) == {**old, _KEY: new}
    except InvalidInput:
        same = False
    if not same:
        raise FailedPrecondition(
            f"{path} is neither JSON nor written as a block, a key a line",
            fix=f"set {_KEY} to {new} and give --kubelet none",
        )
    return changed


def _block(text: str, new: str) -> str:
    line = f"{_KEY}: {new}"
    if _IN_CONFIG.search(text):
        return _IN_CONFIG.sub(lambda _: line, text, count=1)
    return text + ("" if text.endswith("\n") or not text else "\n") + line + "\n"


def _json(text: str, old: Mapping[str, object], new: str) -> str:
    if _KEY in old:
        return _IN_JSON.sub(lambda found: found[1] + json.dumps(new), text, count=1)
    more = "," if old else ""
    return _JSON_HEAD.sub(lambda head: f"{head[0]}{json.dumps(_KEY)}: {json.dumps(new)}{more}{head[1]}", text, count=1)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _dropins(tree: Tree, directory: str) -> Iterator[str]:
    for name in tree.names(directory):
        path = f"{directory}/{name}"
        if tree.names(path):
            yield from _dropins(tree, path)
        elif name.endswith(".conf"):
            yield path


def _configuration(tree: Tree, path: str) -> dict[str, object]:
    content = tree.read(path)
    if content is None:
        fix = "kubeadm join makes it; before that, --kubelet none, and criSocket in kubeadm's configuration"
        raise InvalidInput(path, "does not exist, yet the kubelet is to read it", fix=fix)
    return _mapping(path, content)


def _mapping(path: str, content: bytes) -> dict[str, object]:
    try:
        # YAML forbids the tabs that JSON may have.
        text = _decoded(path, content)
        found = json.loads(text) if _is_json(text) else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInput(path, f"is not YAML: {error}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidInput(path, "is not a mapping")
    return {str(key): value for key, value in found.items()}


def _flags(words: Sequence[Word]) -> Iterator[tuple[str, Word]]:
    """Flags and their values; of one given twice, the last counts."""
    rest = iter(words[1:])
    for word in rest:
        if not word.text.startswith("--"):
            continue
        name, equals, value = word.text[2:].partition("=")
        # The kubelet takes either (k8s.io/component-base/cli/flag, WordSepNormalizeFunc).
        name = name.replace("_", "-")
        if not equals and name in _VALUED:
            following = next(rest, None)
            value = following.text if following is not None else ""
        yield name, Word(value, word.file)


def _healthz(flags: Mapping[str, Word], values: Mapping[str, object]) -> tuple[str, int] | None:
    text = flags["healthz-port"].text if "healthz-port" in flags else str(values.get("healthzPort") or "")
    if "healthzPort" in values and values["healthzPort"] == 0 and "healthz-port" not in flags:
        return None
    if text and not text.isdecimal():
        raise InvalidInput("healthzPort", f"{text!r} is not a port")
    port = int(text) if text else _HEALTH_PORT
    address = flags["healthz-bind-address"].text if "healthz-bind-address" in flags else ""
    address = address or _string(values, "healthzBindAddress") or "127.0.0.1"
    # Any address is loopback's as well.
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104
    return (address, port) if port else None


def _string(values: Mapping[str, object], key: str) -> str:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidInput(key, f"{value!r} is not a string")
    return value or ""


def _decoded(path: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise InvalidInput(path, "is not text") from None
