"""What a node says of a policy: once for all nodes, and no word against another's."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from forgeone_shim.cluster import crd, verdicts
from forgeone_shim.cluster.verdicts import Speaker, event, plan
from forgeone_shim.cluster.watch import ApiError
from forgeone_shim.cluster.wire import Verdict
from tests.unit.cluster.server import recorded

NOW, EARLIER = "2026-02-02T00:00:00Z", "2026-01-01T00:00:00Z"
OBJECT = recorded("last_page")["items"][0]
UID, NAME = OBJECT["metadata"]["uid"], OBJECT["metadata"]["name"]
GOOD, BAD = Verdict(NAME, UID, 1, ""), Verdict(NAME, UID, 1, "spec.flour is not a field known here")


def said(status: str, message: str = "", generation: int = 1) -> dict[str, Any]:
    condition = {
        "type": "Accepted",
        "status": status,
        "reason": "Some",
        "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": EARLIER,
    }
    return OBJECT | {"status": {"conditions": [condition]}}


@pytest.mark.parametrize(
    ("given", "verdict", "status"),
    [
        (OBJECT, GOOD, "True"),
        (OBJECT, BAD, "False"),
        (said("True"), GOOD, ""),
        (said("True"), BAD, "False"),
        (said("False", "n1: why"), BAD, ""),
        (said("False", "n2: why"), BAD, ""),
        (said("False", "n1: why"), GOOD, "True"),
        (said("False", "n2: why"), GOOD, ""),
        (said("False", "n2: why", generation=0), GOOD, "True"),
        (said("True", generation=0), GOOD, "True"),
        (OBJECT, Verdict(NAME, UID, 2, ""), ""),
        (OBJECT, Verdict(NAME, "another", 1, ""), ""),
    ],
)
def test_who_may_say_what(given: dict[str, Any], verdict: Verdict, status: str) -> None:
    patch = plan(given, verdict, "n1", NOW)
    assert (patch["status"]["conditions"][-1]["status"] if patch else "") == status


def test_a_patch_names_the_version_it_is_for_and_leaves_other_conditions() -> None:
    other = {"type": "Other", "status": "True"}
    given = said("True", generation=0)
    given["status"]["conditions"].insert(0, other)
    patch = plan(given, GOOD, "n1", NOW)
    assert patch is not None
    assert patch["metadata"] == {"resourceVersion": OBJECT["metadata"]["resourceVersion"]}
    assert patch["status"]["conditions"][0] == other
    assert patch["status"]["conditions"][1]["lastTransitionTime"] == EARLIER, "it is as it was"
    schema = crd.schema()["properties"]["status"]
    jsonschema.validate({"conditions": patch["status"]["conditions"][1:]}, schema)


def test_an_event_is_one_that_kubernetes_takes_and_the_same_for_the_same() -> None:
    long = Verdict(NAME, UID, 1, "x" * 5000)
    kubernetes_validate.validate(event(long, "n1", NOW), "1.37", strict=True)
    assert len(event(long, "n" * 63, NOW)["message"]) <= 1024
    assert event(BAD, "n1", NOW)["metadata"] == event(BAD, "n1", EARLIER)["metadata"]
    assert event(BAD, "n1", NOW)["metadata"] != event(BAD, "n2", NOW)["metadata"]


class Ended(Exception):
    """The speaker has nothing more to say."""


class Api:
    """Takes what is said, or refuses by its list of errors."""

    def __init__(self, *errors: ApiError | None) -> None:
        self.errors = list(errors)
        self.marked: list[Any] = []
        self.told: list[Any] = []

    def mark(self, name: str, patch: Any) -> None:
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        self.marked.append(json.loads(json.dumps(patch)))

    def tell(self, event: Any) -> None:
        self.told.append(event)

    def page(self, token: str) -> Any:
        raise AssertionError

    watch = page


def speak(api: Api, *of: Verdict, given: Any = OBJECT, attempts: int = 1) -> list[str]:
    """Say them; what was complained about."""
    complaints: list[str] = []
    speaker = Speaker(api, "n1", complaints.append)
    speaker.seen(NAME, given)
    for verdict in of:
        speaker.say(verdict)
    for _ in range(attempts):
        for verdict in list(speaker._left.values()):
            speaker._said(verdict)
    assert api.errors == []
    return complaints


def test_a_policy_that_can_be_used_is_marked_and_no_event_told() -> None:
    api = Api()
    assert speak(api, GOOD) == []
    assert (len(api.marked), api.told) == (1, [])


def test_the_last_verdict_on_a_policy_is_the_one_that_is_said() -> None:
    api = Api()
    speak(api, GOOD, BAD, attempts=3)
    assert [one["status"]["conditions"][-1]["status"] for one in api.marked] == ["False"]
    assert len(api.told) == 1


def test_whoever_was_faster_is_not_spoken_against_but_asked_again() -> None:
    api = Api(ApiError(409, "conflict"), ApiError(409, "conflict"), None)
    assert speak(api, BAD, attempts=4) == []
    assert (len(api.marked), len(api.told)) == (1, 1)


def test_a_policy_that_is_gone_needs_no_word() -> None:
    api = Api(ApiError(404, "gone"))
    assert speak(api, BAD, attempts=3) == []
    assert speak(api, BAD, given=None) == []
    assert not api.marked and not api.told


def test_where_the_status_is_forbidden_an_event_says_it_and_the_node_complains_once() -> None:
    api = Api(ApiError(403, "no"))
    assert speak(api, BAD, attempts=3) == ["no"]
    assert len(api.told) == 1
    assert verdicts.message(BAD, "n1") in api.told[0]["message"]


def test_a_server_that_is_away_is_told_later() -> None:
    api = Api(ApiError(0, "away"), ApiError(0, "away"), None)
    assert speak(api, BAD, attempts=4) == ["away"]
    assert len(api.marked) == 1
