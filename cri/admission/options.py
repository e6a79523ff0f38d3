"""What ``forgeone-admission`` is told: flags, and for each of them a variable of the environment. Pure.

``--fill-runtime-class`` is ``FORGEONE_ADMISSION_FILL_RUNTIME_CLASS``; a flag goes before its variable. Flags that may
be given several times have commas between their values there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from forgeone_shim.config import checks
from forgeone_shim.config.handlers import DEFAULT_ENGINE
from forgeone_shim.contract import values
from forgeone_shim.contract.model import EXEC_MODES
from forgeone_shim.errors import InvalidInput
from forgeone_shim.version import VERSION

PREFIX: Final = "FORGEONE_ADMISSION_"
ANY: Final = "auto"
"""In place of an engine: whichever the node chooses."""
NONE: Final = "none"
ENGINES: Final = (*EXEC_MODES[1:], ANY)
LEVELS: Final = ("debug", "info", "warning", "error")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """All of it, checked.

    :param address: what is listened on, and ``port``.
    :param kubeconfig: where the API server is; empty: as pods are told.
    :param namespace: where ``secret``, ``issuers`` and the service are.
    :param service: the name of the Service that the API server calls: what the certificate is for.
    :param secret: keeps the certificates, shared by all replicas. Empty: ``tls_dir`` has them.
    :param tls_dir: a directory with ``tls.crt`` and ``tls.key``, made by somebody else and read when it changes.
    :param validating: names of ValidatingWebhookConfigurations whose ``caBundle`` is kept; ``mutating`` likewise.
    :param certificate_days: how long a serving certificate is valid; a new one is made after two thirds of that.
    :param ca_days: the same of the authority.
    :param client_ca: a file of authorities, one of whom must have signed a caller's certificate; empty: anybody.
    :param client_names: common names that the caller's certificate may have; empty: any.
    :param policies: whether the cluster's ZTAPolicies are followed. Else nothing is held to policies.
    :param node_policies: names of policies that nodes have in files of their own.
    :param default_policy: as the nodes' ``contract.default_policy``.
    :param issuers: a ConfigMap with the public keys of ``contract.issuers_dir``; empty: signatures are left to nodes.
    :param default_engine: of pods without a RuntimeClass; empty: those are another runtime's.
    :param handlers: the engines of handlers that nodes have in files of their own.
    :param fill: pods without a RuntimeClass get one of the engine that their contract demands.
    :param max_connections: at a time; more wait in the kernel's queue.
    :param max_body: bytes of a request.
    :param request_seconds: that one request may take, from its first byte to the answer.
    """

    address: str = ""
    port: int = 8443
    kubeconfig: str = ""
    namespace: str = "forgeone-system"
    service: str = "forgeone-admission"
    secret: str = "forgeone-admission-tls"  # noqa: S105
    tls_dir: str = ""
    validating: tuple[str, ...] = ()
    mutating: tuple[str, ...] = ()
    certificate_days: int = 90
    ca_days: int = 1095
    client_ca: str = ""
    client_names: tuple[str, ...] = ()
    policies: bool = True
    node_policies: tuple[str, ...] = ()
    default_policy: str = ""
    issuers: str = ""
    default_engine: str = DEFAULT_ENGINE
    handlers: Mapping[str, str]
    fill: bool = False
    max_connections: int = 128
    max_body: int = 8 << 20
    request_seconds: int = 5
    log_level: str = "info"
    log_format: str = "json"

    def __post_init__(self) -> None:
        for key, value in (("namespace", self.namespace), ("service", self.service)):
            values.label(f"--{key}", value)
        for key, value in (("secret", self.secret), ("issuers", self.issuers)):
            if value:
                checks.host_name(f"--{key}", value)
        for key, names in (("validating", self.validating), ("mutating", self.mutating)):
            for name in names:
                checks.host_name(f"--{key}", name)
        for key, path in (("tls-dir", self.tls_dir), ("client-ca", self.client_ca), ("kubeconfig", self.kubeconfig)):
            if path:
                checks.absolute_path(f"--{key}", path)
        for name in (*self.node_policies, *filter(None, [self.default_policy])):
            checks.policy_name("--node-policy" if name in self.node_policies else "--default-policy", name)
        for name, engine in self.handlers.items():
            values.label("--handler", name)
            checks.one_of("--handler", engine, ENGINES)
        checks.one_of("--default-engine", self.default_engine, ("", DEFAULT_ENGINE))
        for key, number, low, high in (
            ("port", self.port, 1, 65535),
            ("certificate-days", self.certificate_days, 1, 3650),
            ("ca-days", self.ca_days, 1, 36500),
            ("max-connections", self.max_connections, 1, 4096),
            ("max-body-bytes", self.max_body, 1 << 10, 64 << 20),
            ("request-seconds", self.request_seconds, 1, 30),
        ):
            checks.in_range(f"--{key}", number, low, high)
        if self.certificate_days > self.ca_days:
            raise InvalidInput(
                "--certificate-days", "is longer than --ca-days", fix="an authority outlives what it signs"
            )
        if self.tls_dir and (self.validating or self.mutating):
            raise InvalidInput("--tls-dir", "has no authority of whom webhook configurations could be told")
        if not self.tls_dir and not self.secret:
            raise InvalidInput("--secret", "is missing", fix="name a Secret, or a directory with --tls-dir")
        if self.client_names and not self.client_ca:
            raise InvalidInput("--client-name", "means nothing without --client-ca")
        if not self.policies and (self.node_policies or self.default_policy):
            raise InvalidInput("--node-policy", "and --default-policy mean nothing without --policies cluster")


def parse(argv: Sequence[str] | None, environ: Mapping[str, str]) -> Options:
    """The options of a command line.

    :raises InvalidInput: naming the flag.
    """
    args = _Reader(environ)
    given = args.parser.parse_args(argv)
    address, port = _endpoint(given.listen)
    return Options(
        address=address,
        port=port,
        kubeconfig=given.kubeconfig,
        namespace=given.namespace,
        service=given.service,
        secret="" if given.tls_dir else given.secret,
        tls_dir=given.tls_dir,
        validating=tuple(given.validating),
        mutating=tuple(given.mutating),
        certificate_days=given.certificate_days,
        ca_days=given.ca_days,
        client_ca=given.client_ca,
        client_names=tuple(given.client_name),
        policies=given.policies == "cluster",
        node_policies=tuple(given.node_policy),
        default_policy=given.default_policy,
        issuers=given.issuers,
        default_engine="" if given.default_engine == NONE else given.default_engine,
        handlers=_pairs(given.handler),
        fill=given.fill_runtime_class,
        max_connections=given.max_connections,
        max_body=given.max_body_bytes,
        request_seconds=given.request_seconds,
        log_level=given.log_level,
        log_format=given.log_format,
    )


class _Reader:
    """The parser, its defaults taken from the environment."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        known = Options(handlers={})
        self.parser = argparse.ArgumentParser(
            prog="forgeone-admission",
            description="Hold pods, and what makes pods, to their contracts where they are applied.",
            epilog=f"Each flag may be given as a variable instead: --tls-dir is {PREFIX}TLS_DIR.",
        )
        self.parser.add_argument("--version", action="version", version=f"forgeone-admission {VERSION}")
        self._one("--listen", "[ADDRESS]:PORT", f":{known.port}", "serve HTTPS there; without an address, on all")
        self._one("--kubeconfig", "FILE", "", "of the API server (default: as a pod's service account)")
        self._one("--namespace", "NAME", known.namespace, "of the service, the secret and the issuers")
        self._one("--service", "NAME", known.service, "the Service that the API server calls")
        self._one("--secret", "NAME", known.secret, "the Secret that keeps the certificates of all replicas")
        self._one("--tls-dir", "DIRECTORY", "", "tls.crt and tls.key of somebody else, in place of own certificates")
        self._many("--validating", "NAME", "a ValidatingWebhookConfiguration whose caBundle is kept")
        self._many("--mutating", "NAME", "a MutatingWebhookConfiguration whose caBundle is kept")
        self._number("--certificate-days", known.certificate_days, "that a serving certificate is valid")
        self._number("--ca-days", known.ca_days, "that the authority is valid")
        self._one("--client-ca", "FILE", "", "callers need a certificate of one of these authorities")
        self._many("--client-name", "NAME", "a common name that callers may have")
        self._choice("--policies", ("cluster", NONE), "cluster", "follow the ZTAPolicies of the cluster, or none")
        self._many("--node-policy", "NAME", "a policy that nodes have in a file of their own")
        self._one("--default-policy", "NAME", "", "as contract.default_policy of the nodes")
        self._one("--issuers", "NAME", "", "a ConfigMap with the public keys of contract.issuers_dir")
        self._choice(
            "--default-engine",
            (DEFAULT_ENGINE, NONE),
            DEFAULT_ENGINE,
            "of pods without a RuntimeClass; none: they are another runtime's",
        )
        self._many("--handler", "NAME=ENGINE", "a runtime handler that nodes have in a file of their own")
        self._flag("--fill-runtime-class", "give pods the RuntimeClass of the engine that their contract demands")
        self._number("--max-connections", known.max_connections, "at a time")
        self._number("--max-body-bytes", known.max_body, "of a request")
        self._number("--request-seconds", known.request_seconds, "that a request may take")
        self._choice("--log-level", LEVELS, known.log_level, "what is logged")
        self._choice("--log-format", ("json", "console"), known.log_format, "how")

    def _from(self, flag: str, default: str) -> str:
        return self._environ.get(PREFIX + flag.removeprefix("--").replace("-", "_").upper(), default)

    def _one(self, flag: str, metavar: str, default: str, text: str) -> None:
        shown = f" (default: {default})" if default else ""
        self.parser.add_argument(flag, metavar=metavar, default=self._from(flag, default), help=text + shown)

    def _many(self, flag: str, metavar: str, text: str) -> None:
        given = [one.strip() for one in self._from(flag, "").split(",") if one.strip()]
        self.parser.add_argument(flag, metavar=metavar, action=_Replacing, default=given, help=f"{text}; repeatable")

    def _number(self, flag: str, default: int, text: str) -> None:
        # A default that is a text is read as the flag's value is.
        self.parser.add_argument(
            flag,
            metavar="NUMBER",
            type=_typed(flag, int),
            default=self._from(flag, str(default)),
            help=f"{text} (default: {default})",
        )

    def _choice(self, flag: str, allowed: tuple[str, ...], default: str, text: str) -> None:
        def chosen(value: str) -> str:
            checks.one_of(flag, value, allowed)
            return value

        self.parser.add_argument(
            flag,
            metavar="|".join(allowed),
            type=chosen,
            default=self._from(flag, default),
            help=f"{text} (default: {default})",
        )

    def _flag(self, flag: str, text: str) -> None:
        value = self._from(flag, "false")
        checks.one_of(PREFIX + flag.removeprefix("--").replace("-", "_").upper(), value, ("true", "false"))
        self.parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=value == "true", help=text)


class _Replacing(argparse.Action):
    """Given once it takes the place of what the environment says; given again it is added."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, given: object, option: str | None = None
    ) -> None:
        del parser, option
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [given] if before is self.default else [*before, given])


def _typed(flag: str, kind: Callable[[str], T]) -> Callable[[str], T]:
    def read(value: str) -> T:
        try:
            return kind(value)
        except ValueError:
            raise InvalidInput(flag, f"{value!r} is not a number") from None

    return read


def _endpoint(text: str) -> tuple[str, int]:
    address, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        raise InvalidInput("--listen", f"{text!r} is not ADDRESS:PORT", fix=":8443 is on all addresses")
    address = address.removeprefix("[").removesuffix("]")
    if address:
        checks.ip_address("--listen", address)
    return address, int(port)


def _pairs(given: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in given:
        name, equals, engine = one.partition("=")
        if not equals or name in found:
            raise InvalidInput("--handler", f"{one!r} is not NAME=ENGINE, or the name is there twice")
        found[name] = engine
    return found
