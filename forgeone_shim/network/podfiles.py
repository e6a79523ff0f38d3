"""The files a pod gets from its node: hostname, hosts and resolv.conf. What is in them is decided here, purely."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from engines.base import DNSConfig
from forgeone_shim.errors import InvalidInput, syscall_error

HOSTNAME_MAX_BYTES: Final = 64
HOST_HOSTS: Final = Path("/etc/hosts")
HOST_RESOLV_CONF: Final = Path("/etc/resolv.conf")

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_SEARCH = re.compile(r"\.|(?!\.)[A-Za-z0-9_.-]{1,255}")
_OPTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?::[A-Za-z0-9._-]+)?")
_LOOPBACK: Final = (
    "127.0.0.1\tlocalhost",
    "::1\tlocalhost ip6-localhost ip6-loopback",
    "fe00::\tip6-localnet",
    "ff00::\tip6-mcastprefix",
    "ff02::1\tip6-allnodes",
    "ff02::2\tip6-allrouters",
)


@dataclass(frozen=True, slots=True)
class PodFiles:
    """The content of a pod's files."""

    hostname: str
    hosts: str
    resolv_conf: str


def check_hostname(hostname: str) -> str:
    """The host name, if it is one (RFC 1123, at most 64 bytes as Linux has it).

    :raises InvalidInput: it is not.
    """
    if len(hostname.encode()) > HOSTNAME_MAX_BYTES:
        raise InvalidInput("hostname", f"is longer than {HOSTNAME_MAX_BYTES} bytes")
    if not _HOSTNAME.fullmatch(hostname):
        raise InvalidInput("hostname", f"{hostname!r} is not a host name by RFC 1123")
    return hostname


def effective_hostname(asked: str, host_hostname: str, *, host_network: bool) -> str:
    """The pod's host name: the one asked for; the host's, if none is or if the pod shares the host's network.

    :raises InvalidInput: the one asked for is not a host name.
    """
    if asked:
        check_hostname(asked)
    return host_hostname if host_network or not asked else asked


def render_hosts(ips: Sequence[str], hostname: str) -> str:
    """An /etc/hosts with loopback and the pod's own name. Addresses are not checked: they are ForgeOne's own."""
    return "\n".join((*_LOOPBACK, *(f"{ip}\t{hostname}" for ip in ips if hostname))) + "\n"


def render_resolv_conf(dns: DNSConfig | None, host_content: str) -> str:
    """A resolv.conf(5) from the CRI ``DNSConfig``; the host's own when nothing is asked for.

    :raises InvalidInput: a value is not what its directive takes.
    """
    if dns is None or not (dns.servers or dns.searches or dns.options):
        return host_content
    lines: list[str] = []
    if dns.searches:
        lines.append("search " + " ".join(_checked("searches", dns.searches, _SEARCH, "a domain")))
    lines += [f"nameserver {_server(index, server)}" for index, server in enumerate(dns.servers)]
    if dns.options:
        lines.append("options " + " ".join(_checked("options", dns.options, _OPTION, "a resolver option")))
    return "\n".join(lines) + "\n"


def _server(index: int, value: str) -> str:
    try:
        ip_address(value)
    except ValueError:
        raise InvalidInput(f"dns_config.servers[{index}]", f"{value!r} is not an IP address") from None
    scope = value.partition("%")[2]
    if scope and not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", scope):
        raise InvalidInput(f"dns_config.servers[{index}]", f"{value!r} has a scope that is no interface's name")
    return value


def _checked(field: str, values: Sequence[str], pattern: re.Pattern[str], noun: str) -> Sequence[str]:
    for index, value in enumerate(values):
        if not pattern.fullmatch(value):
            raise InvalidInput(f"dns_config.{field}[{index}]", f"{value!r} is not {noun}")
    return values


def plan_pod_files(hostname: str, ips: Sequence[str], dns: DNSConfig | None, *, host_network: bool) -> PodFiles:
    """The files of a pod whose effective host name is ``hostname``. Reads the host's own files where they count.

    :raises InvalidInput: a DNS value cannot be used.
    """
    hosts = _read(HOST_HOSTS) if host_network else render_hosts(ips, hostname)
    return PodFiles(f"{hostname}\n", hosts, _resolv_conf(dns))


def name_servers(dns: DNSConfig | None) -> tuple[str, ...]:
    """The addresses that a pod's resolv.conf has; what is no address there is nobody's.

    :raises InvalidInput: a DNS value cannot be used.
    """
    lines = (line.split() for line in _resolv_conf(dns).splitlines())
    return tuple(words[1] for words in lines if len(words) > 1 and words[0] == "nameserver" and _is_address(words[1]))


def _is_address(value: str) -> bool:
    try:
        ip_address(value)
    except ValueError:
        return False
    return True


def _resolv_conf(dns: DNSConfig | None) -> str:
    wants_host_dns = dns is None or not (dns.servers or dns.searches or dns.options)
    return render_resolv_conf(dns, _read(HOST_RESOLV_CONF) if wants_host_dns else "")


def write_pod_files(directory: Path, files: PodFiles, owner: tuple[int, int] | None = None) -> None:
    """Write ``hostname``, ``hosts`` and ``resolv.conf``; existing ones, which containers may have mounted, in place.

    They belong to ``owner`` (user and group), root unless given.

    :raises InternalError: a file cannot be written.
    """
    named = (("hostname", files.hostname), ("hosts", files.hosts), ("resolv.conf", files.resolv_conf))
    for name, content in named:
        _write(directory / name, content, owner)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise syscall_error("read", path, error) from error


def _write(path: Path, content: str, owner: tuple[int, int] | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o644)
        with os.fdopen(fd, "wb") as file:
            # Readable for every user of the pod, whatever the umask.
            os.fchmod(fd, 0o644)
            if owner is not None:
                os.fchown(fd, *owner)
            file.write(content.encode(errors="surrogateescape"))
    except OSError as error:
        raise syscall_error("write", path, error) from error
