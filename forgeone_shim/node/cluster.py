"""What the installer asks of a cluster's API server: its node, leases, events. The Kubernetes client is only here.

Importing it costs tens of megabytes: nothing but the agent and ``forge node retire`` does.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import urllib3
from kubernetes import client, config, watch
from kubernetes.client import ApiException
from kubernetes.config import ConfigException

from forgeone_shim.errors import FailedPrecondition, InvalidInput, NotFound, Unavailable

_CONNECT: Final = 5.0
_ANSWER: Final = 30.0
_SLACK: Final = 15.0
_MICRO: Final = datetime.timedelta(microseconds=1)
"""Kubernetes' MicroTime has always six digits after the point."""


class Conflict(FailedPrecondition):
    """Somebody else changed, or made, the object first."""


@dataclass(frozen=True, slots=True)
class Node:
    """What matters of a node. ``version`` is its resourceVersion."""

    name: str
    uid: str
    version: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    cordoned: bool
    taints: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    """coordination.k8s.io/v1 Lease. ``version`` is its resourceVersion; ``holder`` is empty when it is free."""

    name: str
    version: str
    holder: str
    renewed: str
    seconds: int


@dataclass(frozen=True, slots=True)
class Report:
    """An event about a node; ``good``: of type Normal."""

    reason: str
    message: str
    good: bool = True
    attached: Mapping[str, str] = field(default_factory=dict)


class Cluster:
    """One API server. Every call has a time limit of its own.

    :raises Unavailable: the server does not answer. Conflict, NotFound, FailedPrecondition: it refuses.
    """

    def __init__(self, kubeconfig: str = "") -> None:
        """:raises InvalidInput: it cannot be told where the server is."""
        settings = client.Configuration()
        try:
            if kubeconfig:
                config.load_kube_config(kubeconfig, client_configuration=settings)  # type: ignore[no-untyped-call]
            else:
                config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        except (ConfigException, OSError) as error:
            raise InvalidInput("--kubeconfig", f"cannot be used: {error}") from None
        # A failed call is told, and made again by whoever knows when that makes sense.
        settings.retries = urllib3.Retry(0)
        self._api = client.ApiClient(settings)
        self._core = client.CoreV1Api(self._api)
        self._leases = client.CoordinationV1Api(self._api)

    def node(self, name: str) -> Node:
        """One node."""
        return _node(self._call(self._core.read_node, name))

    def nodes(self, selector: str) -> tuple[Sequence[Node], str]:
        """The nodes with these labels, and where a watch begins."""
        found = self._call(self._core.list_node, label_selector=selector)
        return [_node(item) for item in found.items], str(found.metadata.resource_version)

    def watch_nodes(self, since: str, seconds: int, *, selector: str = "", name: str = "") -> Iterator[Node | None]:
        """Nodes as they change, for so long; ``None``: one is gone, or has other labels now.

        :raises Conflict: what has happened since is not known any more: list anew.
        """
        chosen = {"field_selector": f"metadata.name={name}"} if name else {"label_selector": selector}
        for kind, item in self._watch(self._core.list_node, since, seconds, **chosen):
            yield None if kind == "DELETED" else _node(item)

    def patch_node(self, name: str, change: Mapping[str, object]) -> Node:
        """A strategic merge patch; with a resourceVersion in it, one that conflicts with others'."""
        return _node(self._call(self._core.patch_node, name, dict(change)))

    def lease(self, namespace: str, name: str) -> Lease:
        """One lease."""
        return _lease(self._call(self._leases.read_namespaced_lease, name, namespace))

    def make_lease(self, namespace: str, name: str, holder: str, seconds: int) -> Lease:
        """A new lease, held."""
        body = _lease_body(name, "", holder, seconds)
        return _lease(self._call(self._leases.create_namespaced_lease, namespace, body))

    def hold_lease(self, namespace: str, lease: Lease, holder: str, seconds: int) -> Lease:
        """Take, renew or (``holder`` empty) let go of a lease, if it is still as it was read."""
        body = _lease_body(lease.name, lease.version, holder, seconds)
        return _lease(self._call(self._leases.replace_namespaced_lease, lease.name, namespace, body))

    def watch_leases(self, namespace: str, seconds: int) -> Iterator[Lease]:
        """The leases of the namespace as they change, or go, for so long; begins with those that are there."""
        for _, item in self._watch(self._leases.list_namespaced_lease, "", seconds, namespace=namespace):
            yield _lease(item)

    def report(self, node: Node, report: Report, instance: str) -> None:
        """An event about a node; these live in the namespace ``default``, as the kubelet's do."""
        now = datetime.datetime.now(datetime.UTC)
        body = client.CoreV1Event(
            metadata=client.V1ObjectMeta(generate_name=f"{node.name}.", annotations=dict(report.attached) or None),
            involved_object=client.V1ObjectReference(kind="Node", name=node.name, uid=node.uid, api_version="v1"),
            reason=report.reason,
            message=report.message[:1024],
            type="Normal" if report.good else "Warning",
            source=client.V1EventSource(component="forgeone-node-agent", host=node.name),
            reporting_component="forgeone.dev/node-agent",
            reporting_instance=instance or node.name,
            action=report.reason,
            first_timestamp=now,
            last_timestamp=now,
            event_time=now,
            count=1,
        )
        self._call(self._core.create_namespaced_event, "default", body)

    def _watch(self, listing: Any, since: str, seconds: int, **chosen: str) -> Iterator[tuple[str, Any]]:
        more = {"resource_version": since} if since else {}
        watching: Any = watch.Watch()  # type: ignore[no-untyped-call]
        limit = (_CONNECT, seconds + _SLACK)
        try:
            for event in watching.stream(listing, timeout_seconds=seconds, _request_timeout=limit, **more, **chosen):
                yield event["type"], event["object"]
        except ApiException as error:
            raise _failure(error) from None
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise Unavailable(f"the API server: {error}") from None

    def _call(self, method: Any, *arguments: object, **more: object) -> Any:
        try:
            return method(*arguments, _request_timeout=(_CONNECT, _ANSWER), **more)
        except ApiException as error:
            raise _failure(error) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(f"the API server: {error}") from None


def _failure(error: ApiException) -> Exception:
    said = f"the API server: {error.status} {error.reason}"
    if error.status == 404:
        return NotFound("object", said)
    if error.status in {409, 410}:
        return Conflict(said)
    if error.status and error.status < 500 and error.status != 429:
        return FailedPrecondition(said, fix="the agent's rights are the chart's to give")
    return Unavailable(said)


def _node(item: Any) -> Node:
    about, spec = item.metadata, item.spec
    taints = tuple(
        {"key": one.key, "value": one.value or "", "effect": one.effect} | _since(one) for one in spec.taints or ()
    )
    return Node(
        about.name,
        about.uid,
        about.resource_version,
        about.labels or {},
        about.annotations or {},
        bool(spec.unschedulable),
        taints,
    )


def _since(taint: Any) -> dict[str, str]:
    return {"timeAdded": taint.time_added.isoformat()} if taint.time_added else {}


def _lease(item: Any) -> Lease:
    spec = item.spec
    renewed = spec.renew_time.isoformat() if spec.renew_time else ""
    return Lease(
        item.metadata.name,
        item.metadata.resource_version,
        spec.holder_identity or "",
        renewed,
        spec.lease_duration_seconds or 0,
    )


def _lease_body(name: str, version: str, holder: str, seconds: int) -> Any:
    now = datetime.datetime.now(datetime.UTC)
    # Six digits, also where all are 0: the server takes no others.
    now = now if now.microsecond else now + _MICRO
    metadata = client.V1ObjectMeta(name=name, resource_version=version or None)
    spec = client.V1LeaseSpec(
        holder_identity=holder,
        lease_duration_seconds=seconds,
        acquire_time=now if holder else None,
        renew_time=now,
    )
    return client.V1Lease(metadata=metadata, spec=spec)
