"""Several replicas, one Secret: whoever is first, all show the same, and API servers are told of it."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cri.admission import api, certificates, keeping
from cri.admission.certificates import Pair
from cri.admission.keeping import Keeper
from cri.admission.options import Options
from forgeone_shim.errors import Unavailable
from hack.lab.api import ApiDouble, served

OPTIONS = Options(handlers={}, validating=("hook",), mutating=("hook",))
SECRET = f"{api.secrets(OPTIONS.namespace)}/{OPTIONS.secret}"
PLACES = (f"{keeping.VALIDATING}/hook", f"{keeping.MUTATING}/hook")
OURS = {"service": {"namespace": OPTIONS.namespace, "name": OPTIONS.service, "path": "/validate"}}
THEIRS = {"service": {"namespace": "else", "name": "else"}, "caBundle": "dGhlaXJz"}


@pytest.fixture
def double(tmp_path: Path) -> Iterator[tuple[ApiDouble, str]]:
    with served(tmp_path) as (found, kubeconfig):
        found.put(SECRET, {"kind": "Secret", "type": "Opaque", "metadata": {"labels": {"a": "b"}}})
        for place in PLACES:
            found.put(place, {"webhooks": [{"name": "a", "clientConfig": OURS}, {"name": "b", "clientConfig": THEIRS}]})
        yield found, kubeconfig


def keeper(kubeconfig: str, used: list[Pair], **of: Any) -> Keeper:
    return Keeper(api.Cluster(kubeconfig), OPTIONS, used.append, **of)


def bundles(found: ApiDouble) -> set[str]:
    return {found.objects[place]["webhooks"][0]["clientConfig"].get("caBundle", "") for place in PLACES}


def test_the_first_replica_fills_the_secret_and_tells_of_it(double: tuple[ApiDouble, str]) -> None:
    found, kubeconfig = double
    used: list[Pair] = []
    one = keeper(kubeconfig, used)
    due = one.keep()
    assert timedelta(days=59) < due - datetime.now(UTC) < timedelta(days=61)
    state = certificates.read(found.objects[SECRET]["data"])
    assert [state.tls] == used
    assert found.objects[SECRET]["metadata"]["labels"] == {"a": "b"}
    (bundle,) = bundles(found)
    assert base64.b64decode(bundle) == certificates.bundle(state, datetime.now(UTC))
    assert all(found.objects[place]["webhooks"][1]["clientConfig"] == THEIRS for place in PLACES)
    # API servers are told before anything is shown.
    assert found.writes == [SECRET, *PLACES]
    one.keep()
    assert found.writes == [SECRET, *PLACES]
    assert len(used) == 1


def test_a_secret_that_is_not_there_is_made(double: tuple[ApiDouble, str]) -> None:
    found, kubeconfig = double
    found.drop(SECRET)
    used: list[Pair] = []
    keeper(kubeconfig, used).keep()
    assert found.objects[SECRET]["type"] == "Opaque"
    assert len(used) == 1


def test_replicas_at_one_moment_agree(double: tuple[ApiDouble, str]) -> None:
    found, kubeconfig = double
    used: list[Pair] = []
    start = threading.Barrier(4)

    def run(one: Keeper) -> None:
        start.wait()
        one.keep()

    threads = [threading.Thread(target=run, args=(keeper(kubeconfig, used),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(used) == 4
    assert len({*used}) == 1
    assert found.writes.count(SECRET) == 1
    state = certificates.read(found.objects[SECRET]["data"])
    assert bundles(found) == {base64.b64encode(certificates.bundle(state, datetime.now(UTC))).decode()}


def test_a_renewed_certificate_is_used_by_the_others_and_needs_telling_nobody(double: tuple[ApiDouble, str]) -> None:
    found, kubeconfig = double
    first: list[Pair] = []
    later: list[Pair] = []
    keeper(kubeconfig, first).keep()
    sleeper = keeper(kubeconfig, first)
    sleeper.keep()
    keeper(kubeconfig, later, now=lambda: datetime.now(UTC) + timedelta(days=70)).keep()
    sleeper.keep()
    assert first[-1] == later[-1] != first[0]
    assert found.writes == [SECRET, *PLACES, SECRET]


def test_an_authority_that_nobody_expected_is_told_a_moment_before_it_is_shown(
    double: tuple[ApiDouble, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, kubeconfig = double
    used: list[Pair] = []
    shown: list[float] = []
    monkeypatch.setattr(keeping, "SETTLING", 0.2)
    one = Keeper(api.Cluster(kubeconfig), OPTIONS, lambda pair: (used.append(pair), shown.append(time.monotonic())))
    one.keep()
    (before,) = bundles(found)
    data = {key: value for key, value in found.objects[SECRET]["data"].items() if key != "ca.key"}
    found.put(SECRET, found.objects[SECRET] | {"data": data})
    began = time.monotonic()
    one.keep()
    assert shown[1] - began >= 0.2
    (after,) = bundles(found)
    assert base64.b64decode(after).endswith(base64.b64decode(before))


def test_a_configuration_that_does_not_exist_yet_or_is_refused(double: tuple[ApiDouble, str]) -> None:
    found, kubeconfig = double
    found.drop(PLACES[1])
    used: list[Pair] = []
    keeper(kubeconfig, used).keep()
    assert len(used) == 1
    found.refused[PLACES[0]] = 403
    with pytest.raises(Unavailable, match="403: refused by the test"):
        keeper(kubeconfig, used).keep()
    assert len(used) == 1


def test_what_others_undo_is_done_again_at_once(double: tuple[ApiDouble, str]) -> None:
    found, kubeconfig = double
    used: list[Pair] = []
    one = keeper(kubeconfig, used)
    one.start()
    try:
        with found.changed:
            assert found.changed.wait_for(lambda: "" not in bundles(found), 10)
        # As an upgrade of a chart would have it.
        found.put(PLACES[0], {"webhooks": [{"name": "a", "clientConfig": OURS}]})
        with found.changed:
            assert found.changed.wait_for(lambda: "" not in bundles(found), 10)
        found.put(SECRET, {"kind": "Secret", "data": {}})
        with found.changed:
            assert found.changed.wait_for(lambda: "tls.key" in found.objects[SECRET]["data"], 10)
            state = certificates.read(found.objects[SECRET]["data"])
            wanted = base64.b64encode(certificates.bundle(state, datetime.now(UTC))).decode()
            assert found.changed.wait_for(lambda: bundles(found) == {wanted}, 10)
    finally:
        one.stop()


def test_what_no_one_expects_does_not_end_their_renewal(
    double: tuple[ApiDouble, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, kubeconfig = double
    used: list[Pair] = []
    renewed, faults = certificates.renewed, iter([TypeError("odd")])

    def odd(*given: Any) -> Any:
        for fault in faults:
            raise fault
        return renewed(*given)

    monkeypatch.setattr(certificates, "renewed", odd)
    monkeypatch.setattr(keeping, "_DELAY", (0.01, 0.02))
    one = keeper(kubeconfig, used)
    one.start()
    try:
        until = time.monotonic() + 10
        while not used and time.monotonic() < until:
            time.sleep(0.01)
        assert used
    finally:
        one.stop()
