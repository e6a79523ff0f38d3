"""A Kubernetes cluster as the tests see it: objects made and removed, and waited for by watches."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from kubernetes import client, stream, watch
from kubernetes.client.exceptions import ApiException

from hack.lab.settings import patient

Json = Mapping[str, Any]
OURS: Final = {"app.kubernetes.io/managed-by": "forgeone-e2e"}
"""Labels of what is in no namespace of the tests: what a run has left that was killed is found by them."""
_NOT_FOUND: Final = 404
_EVENTS: Final = 8
_LOOK_AGAIN: Final = 3
_OVERHEADS: Final = {"microvm": {"memory": "240Mi"}, "auto": {"memory": "240Mi"}}
"""What an engine needs of a pod's control group besides what the containers may have."""
_FROM_NOW: Final = {"resource_version": "0"}
"""Begin a watch with what the API server has at hand, which may be a moment old. Without it a server waits for its
store, in vain where that is too old to tell how far it is."""


class Cluster:
    """The API server that ``KUBECONFIG`` names; every wait ends, and tells what was seen last when it ends badly."""

    def __init__(self, connection: client.ApiClient) -> None:
        self.connection = connection
        self.core = client.CoreV1Api(connection)
        self.apps = client.AppsV1Api(connection)
        self.batch = client.BatchV1Api(connection)
        self.node = client.NodeV1Api(connection)
        self.policy = client.PolicyV1Api(connection)
        self.custom = client.CustomObjectsApi(connection)
        self._going: list[str] = []

    def nodes(self) -> list[Any]:
        """Those that take pods."""
        return [
            one
            for one in self.core.list_node().items
            if not one.spec.unschedulable and condition(one, "Ready") == "True" and not _kept_free(one)
        ]

    def handlers(self) -> dict[str, list[str]]:
        """The nodes that have each runtime handler."""
        found: dict[str, list[str]] = {}
        for node in self.nodes():
            for handler in node.status.runtime_handlers or ():
                found.setdefault(handler.name or "", []).append(node.metadata.name)
        return found

    def until(
        self,
        listing: Callable[..., Any],
        namespace: str,
        name: str,
        holds: Callable[[Any], Any],
        seconds: float = 60,
    ) -> Any:
        """The object as soon as ``holds`` is true of it.

        Args:
            listing: The client's method that lists and watches objects of the kind.
            namespace: Where the object is; empty for what has no namespace.

        Raises:
            AssertionError: It was not within ``seconds``; with the object and its events.
        """
        where = (namespace,) if namespace else ()
        deadline = time.monotonic() + patient(seconds)
        last = None
        while (left := deadline - time.monotonic()) > 0:
            looking = watch.Watch()
            options = {"field_selector": f"metadata.name={name}", "timeout_seconds": max(1, round(left)), **_FROM_NOW}
            for event in looking.stream(listing, *where, **options):
                last = event["object"]
                if event["type"] != "DELETED" and holds(last):
                    looking.stop()
                    return last
        state = last and last.to_dict().get("status")
        raise AssertionError(
            f"{namespace}/{name} is not what was waited for after {patient(seconds)} s: {state}\n"
            + "\n".join(self.events(namespace, name))
        )

    def gone(self, listing: Callable[..., Any], namespace: str, name: str, seconds: float = 60) -> None:
        """Wait until there is no such object.

        Raises:
            AssertionError: It is still there.
        """
        where = (namespace,) if namespace else ()
        selector = f"metadata.name={name}"
        deadline = time.monotonic() + patient(seconds)
        while listing(*where, field_selector=selector).items:
            assert time.monotonic() < deadline, (
                f"{namespace}/{name} is still there after {patient(seconds)} s\n"
                + "\n".join(self.events(namespace, name))
            )
            looking = watch.Watch()
            # It may go before the watch begins, which then tells nothing: so look again soon.
            for event in looking.stream(
                listing, *where, field_selector=selector, timeout_seconds=_LOOK_AGAIN, **_FROM_NOW
            ):
                if event["type"] == "DELETED":
                    looking.stop()

    def pod(self, namespace: str, name: str, holds: Callable[[Any], Any], seconds: float = 60) -> Any:
        """The pod as soon as ``holds`` is true of it."""
        return self.until(self.core.list_namespaced_pod, namespace, name, holds, seconds)

    def run(self, namespace: str, body: Json, holds: Callable[[Any], Any] | None = None, seconds: float = 60) -> Any:
        """Make a pod; returns it when it is ready, or when ``holds`` is true of it."""
        self.core.create_namespaced_pod(namespace, body)
        return self.pod(namespace, body["metadata"]["name"], holds or ready, seconds)

    def deploy(self, namespace: str, body: Json, seconds: float = 90) -> Any:
        """Make or change a Deployment; returns it when all of its pods are of this form and serve."""
        name = body["metadata"]["name"]
        try:
            made = self.apps.create_namespaced_deployment(namespace, body)
        except ApiException as error:
            if error.status != 409:
                raise
            made = self.apps.replace_namespaced_deployment(name, namespace, body)
        wanted = made.metadata.generation
        listing = self.apps.list_namespaced_deployment
        return self.until(
            listing, namespace, name, lambda one: one.metadata.generation >= wanted and rolled_out(one), seconds
        )

    def remove_pod(self, namespace: str, name: str, grace: int = 0) -> None:
        """Delete a pod and wait until it is gone; one that does not exist is gone."""
        with absent_is_fine():
            self.core.delete_namespaced_pod(name, namespace, grace_period_seconds=grace)
        self.gone(self.core.list_namespaced_pod, namespace, name)

    def exec(self, namespace: str, name: str, *command: str, container: str = "main") -> str:
        """What a command says, on both streams."""
        # A copy of the connection: the streaming client replaces its ways of sending.
        core = client.CoreV1Api(client.ApiClient(self.connection.configuration))
        said: str = stream.stream(
            core.connect_get_namespaced_pod_exec,
            name,
            namespace,
            container=container,
            command=list(command),
            stdout=True,
            stderr=True,
            stdin=False,
            tty=False,
            _request_timeout=patient(60),
        )
        return said

    def logs(self, namespace: str, name: str, container: str = "main", **options: Any) -> str:
        """A container's log so far."""
        # As bytes: the client would make Python's text of a log that is JSON.
        answer = self.core.read_namespaced_pod_log(
            name, namespace, container=container, _preload_content=False, _request_timeout=patient(30), **options
        )
        return str(answer.data.decode())

    def lines(self, namespace: str, name: str, count: int, container: str = "main") -> list[str]:
        """The first lines of a container's log, as soon as there are so many; fewer where it ends before.

        Raises:
            urllib3.exceptions.ReadTimeoutError: There are not so many within a minute.
        """
        answer = self.core.read_namespaced_pod_log(
            name,
            namespace,
            container=container,
            follow=True,
            _preload_content=False,
            _request_timeout=patient(60),
        )
        try:
            data = b""
            for piece in answer.stream(None):
                data += piece
                if data.count(b"\n") >= count:
                    break
            return data.decode().splitlines()[:count]
        finally:
            answer.close()

    def get(self, namespace: str, service: str, path: str, port: int = 80) -> tuple[int, str]:
        """Status and body of what a Service answers, asked through the API server."""
        try:
            said = self.core.connect_get_namespaced_service_proxy_with_path(
                f"{service}:{port}", namespace, path.lstrip("/"), _preload_content=False, _request_timeout=patient(20)
            )
        except ApiException as error:
            return int(error.status), str(error.body)
        return int(said.status), said.data.decode()

    def raw(self, path: str) -> Any:
        """The JSON of a path of the API server's."""
        request = self.connection.param_serialize("GET", path, auth_settings=["BearerToken"])
        answer = self.connection.call_api(*request)
        return json.loads(answer.read())

    def events(self, namespace: str, name: str) -> list[str]:
        """The newest events of an object, oldest first."""
        if not namespace:
            return []
        found = self.core.list_namespaced_event(namespace, field_selector=f"involvedObject.name={name}").items
        return [f"{one.reason}: {one.message}" for one in found[-_EVENTS:]]

    def event(self, namespace: str, name: str, reason: str, seconds: float = 60) -> str:
        """The message of an event of an object, as soon as there is one of this reason.

        Raises:
            AssertionError: There was none within ``seconds``.
        """
        looking = watch.Watch()
        selector = f"involvedObject.name={name},reason={reason}"
        for event in looking.stream(
            self.core.list_namespaced_event,
            namespace,
            field_selector=selector,
            timeout_seconds=round(patient(seconds)),
            **_FROM_NOW,
        ):
            looking.stop()
            return str(event["object"].message)
        raise AssertionError(f"no event {reason} of {namespace}/{name}: {self.events(namespace, name)}")

    @contextmanager
    def namespace(self, name: str) -> Iterator[str]:
        """A namespace with its service account. At the end it begins to go; :meth:`close` waits for that."""
        self.core.create_namespace({"metadata": {"name": name, "labels": OURS}})
        self._going.append(name)
        try:
            self.until(self.core.list_namespaced_service_account, name, "default", lambda _: True)
            yield name
        finally:
            with absent_is_fine():
                self.core.delete_namespace(name)

    def close(self) -> None:
        """Wait until no namespace that was made here is left.

        Raises:
            AssertionError: One does not go.
        """
        for name in self._going:
            self.gone(self.core.list_namespace, "", name, seconds=180)

    @contextmanager
    def runtime_class(self, name: str, engine: str) -> Iterator[str]:
        """A RuntimeClass of an engine's handler, for the nodes that have it."""
        body: dict[str, Any] = {"metadata": {"name": name, "labels": OURS}, "handler": f"forgeone-{engine}"}
        if engine in _OVERHEADS:
            body["overhead"] = {"podFixed": _OVERHEADS[engine]}
        if len(self.handlers().get(body["handler"], ())) < len(self.nodes()):
            # Nodes without ForgeOne are no place for these pods: the installer's label tells them apart.
            body["scheduling"] = {"nodeSelector": {f"forgeone.dev/engine-{engine}": "true"}}
        self.node.create_runtime_class(body)
        try:
            yield name
        finally:
            with absent_is_fine():
                self.node.delete_runtime_class(name)


@contextmanager
def absent_is_fine() -> Iterator[None]:
    """For what is removed and may have gone already."""
    try:
        yield
    except ApiException as error:
        if error.status != _NOT_FOUND:
            raise


def _kept_free(node: Any) -> bool:
    return any(taint.effect in ("NoSchedule", "NoExecute") for taint in node.spec.taints or ())


def condition(thing: Any, kind: str) -> str:
    """``True``, ``False`` or ``Unknown``; empty where the object does not have the condition yet."""
    with suppress(AttributeError, TypeError):
        for one in thing.status.conditions:
            if one.type == kind:
                return str(one.status)
    return ""


def ready(pod: Any) -> bool:
    """All of a pod's containers serve."""
    return condition(pod, "Ready") == "True"


def over(pod: Any) -> bool:
    """All of a pod's containers have ended for good."""
    return pod.status.phase in ("Succeeded", "Failed")


def main(pod: Any, name: str = "main") -> Any:
    """The status of a container of any kind; ``None`` while there is none."""
    status = pod.status
    lists = (status.container_statuses, status.init_container_statuses, status.ephemeral_container_statuses)
    return next((one for each in lists for one in each or () if one.name == name), None)


def restarted(pod: Any, name: str = "main") -> bool:
    """A container runs that has run before."""
    status = main(pod, name)
    return status is not None and status.restart_count > 0 and status.state.running is not None


def rolled_out(deployment: Any) -> bool:
    """Every pod is of the newest form and available, and no other is left."""
    status, wanted = deployment.status, deployment.spec.replicas
    return (
        (status.observed_generation or 0) >= deployment.metadata.generation
        and (status.updated_replicas or 0) == wanted
        and (status.available_replicas or 0) == wanted
        and (status.replicas or 0) == wanted
    )
