from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace

import pytest

from engines.base import HostCall, HostCalls
from forgeone_shim.config.model import Config
from forgeone_shim.config.reload import Outcome
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import DeadlineExceeded, PermissionDenied
from forgeone_shim.registry.model import Credentials, Image, LayerProgress, LayerState
from forgeone_shim.rpc import node_pb2
from forgeone_shim.rpc.node import NodeServicer

CALL = SimpleNamespace(deadline=NEVER)
Progress = Callable[[LayerProgress], None]


class Puller:
    """Reports what it is given, then ends as it is told."""

    def __init__(self, updates: list[LayerProgress], outcome: Image | Exception) -> None:
        self.updates, self.outcome = updates, outcome
        self.auth: Credentials | None = None
        self.wasm = False

    def pull(
        self,
        image: str,
        auth: Credentials | None,
        deadline: Deadline,
        progress: Progress | None = None,
        *,
        wasm: bool = False,
    ) -> Image:
        self.auth, self.wasm = auth, wasm
        assert progress is not None
        for update in self.updates:
            progress(update)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def unused() -> Outcome:
    raise AssertionError


def pull(puller: Puller, **request: object) -> list[node_pb2.PullImageResponse]:
    node = SimpleNamespace(images=puller, wasm_first=lambda handler: handler == "forgeone-wasm")
    servicer = NodeServicer(node, unused)
    return list(servicer.PullImage(node_pb2.PullImageRequest(**request), CALL))


class Archives:
    """Images as files."""

    def __init__(self) -> None:
        self.received: tuple[bytes, str] = (b"", "")

    def export(self, names: Sequence[str]) -> Iterator[bytes]:
        yield from (name.encode() for name in names)

    def receive(self, pieces: Iterable[bytes], deadline: Deadline, name: str = "") -> tuple[Image, ...]:
        self.received = b"".join(pieces), name
        return (Image(id="sha256:1", repo_tags=("a:b",)),)


def test_an_export_is_sent_piece_by_piece() -> None:
    servicer = NodeServicer(SimpleNamespace(images=Archives()), unused)
    sent = servicer.ExportImages(node_pb2.ExportImagesRequest(images=["one", "two"]), CALL)
    assert [message.data for message in sent] == [b"one", b"two"]


def test_an_import_s_name_is_its_first_message_s_and_data_may_be_in_any() -> None:
    archives = Archives()
    servicer = NodeServicer(SimpleNamespace(images=archives), unused)
    requests = [node_pb2.ImportImagesRequest(name="n", data=b"1"), node_pb2.ImportImagesRequest(name="x", data=b"2")]
    assert list(servicer.ImportImages(iter(requests), CALL).images[0].repo_tags) == ["a:b"]
    assert archives.received == (b"12", "n")


def test_an_import_without_a_message_is_an_empty_archive() -> None:
    archives = Archives()
    NodeServicer(SimpleNamespace(images=archives), unused).ImportImages(iter(()), CALL)
    assert archives.received == (b"", "")


def test_an_import_whose_caller_goes_away_is_no_fault_of_the_node_s() -> None:
    def cut() -> Iterator[node_pb2.ImportImagesRequest]:
        yield node_pb2.ImportImagesRequest(data=b"1")
        raise RuntimeError("as gRPC has it")

    with pytest.raises(DeadlineExceeded, match="went away"):
        NodeServicer(SimpleNamespace(images=Archives()), unused).ImportImages(cut(), CALL)


def test_the_last_message_is_the_image() -> None:
    image = Image(id="sha256:1", repo_tags=("a:b",), size=7)
    messages = pull(Puller([LayerProgress("sha256:x", 9, 9, LayerState.DONE)], image))
    assert messages[-1].image == node_pb2.PulledImage(id="sha256:1", repo_tags=["a:b"], size=7)
    assert messages[0].layer.state == node_pb2.LAYER_STATE_DONE


@pytest.mark.parametrize(("handler", "wasm"), [("", False), ("forgeone-wasm", True)])
def test_the_handler_says_which_image_of_a_name(handler: str, wasm: bool) -> None:
    puller = Puller([], Image(id="sha256:1"))
    pull(puller, runtime_handler=handler)
    assert puller.wasm is wasm


def test_a_failure_is_raised_as_it_is() -> None:
    with pytest.raises(PermissionDenied):
        pull(Puller([], PermissionDenied("no")))


def test_credentials_are_handed_on_and_none_are_none() -> None:
    image = Image(id="sha256:1")
    puller = Puller([], image)
    pull(puller, image="a")
    assert puller.auth is None
    pull(puller, image="a", credentials=node_pb2.Credentials(username="u", password="p"))
    assert puller.auth == Credentials(username="u", password="p")


def test_progress_is_about_a_hundred_messages_a_layer_and_always_its_last_state() -> None:
    total = 100_000_000
    updates = [LayerProgress("sha256:x", total, done, LayerState.DOWNLOADING) for done in range(0, total + 1, 10_000)]
    updates.append(LayerProgress("sha256:x", total, total, LayerState.DONE))
    layers = [message.layer for message in pull(Puller(updates, Image(id="sha256:1"))) if message.HasField("layer")]
    assert len(layers) <= 103
    assert (layers[-1].done, layers[-1].state) == (total, node_pb2.LAYER_STATE_DONE)


def test_a_reload_says_what_changed_and_what_waits() -> None:
    outcome = Outcome(Config(), ("log.level",), ("root",))
    servicer = NodeServicer(SimpleNamespace(images=Puller([], Image(id="x"))), lambda: outcome)
    answer = servicer.Reload(node_pb2.ReloadRequest(), CALL)
    assert answer == node_pb2.ReloadResponse(changed=["log.level"], needs_restart=["root"])


def test_calls_of_a_guest_come_in_messages_that_any_client_takes() -> None:
    calls = tuple(HostCall(n, 5, None, "i", "f", ("a=1",), None if n == 1000 else "0") for n in range(1, 1001))
    node = SimpleNamespace(host_calls=lambda _id, _deadline, follow: iter([HostCalls(calls, 3, 1003)]))
    request = node_pb2.TraceContainerRequest(container_id="c")
    messages = list(NodeServicer(node, unused).TraceContainer(request, CALL))
    assert [(len(one.calls), one.lost) for one in messages] == [(512, 3), (488, 0)]
    last = messages[-1].calls[-1]
    assert (last.number, last.returned, last.HasField("duration")) == (1000, False, False)


def test_an_inspection_is_one_document() -> None:
    node = SimpleNamespace(inspect=lambda id_: {"kind": "container", "id": id_, "signer": ("a",)})
    answer = NodeServicer(node, unused).Inspect(node_pb2.InspectRequest(id="c"), CALL)
    assert json.loads(answer.document) == {"kind": "container", "id": "c", "signer": ["a"]}


def test_engines_of_pods_and_containers_are_told_with_why_where_they_were_chosen() -> None:
    pod = SimpleNamespace(id="p", engine="native", placed="first in scheduler.order")
    containers = [SimpleNamespace(id="c", engine="wasm")]
    node = SimpleNamespace(sandboxes=lambda: [pod], containers=lambda: containers)
    answer = NodeServicer(node, unused).ListEngines(node_pb2.ListEnginesRequest(), CALL)
    assert (answer.pods["p"].engine, answer.pods["p"].placed) == ("native", "first in scheduler.order")
    assert dict(answer.containers) == {"c": "wasm"}
