"""Objects of the cluster are the policies that the same words in a file are."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.cluster import objects
from forgeone_shim.contract import policy
from forgeone_shim.errors import InvalidInput

SPEC: dict[str, Any] = {
    "floor": True,
    "exceptNamespaces": ["kube-*"],
    "contract": {"profile": {"privileged": False, "images": ["registry.example/**"], "resources": {"memory": "64Mi"}}},
    "rules": [{"name": "not-root", "at": ["create"], "expression": "container.user != 0"}],
}


def made(name: str = "house", spec: Any = SPEC, **more: Any) -> dict[str, Any]:
    return {"apiVersion": objects.API_VERSION, "kind": objects.KIND, "metadata": {"name": name}, "spec": spec, **more}


def test_an_object_is_the_policy_that_a_file_with_its_words_is() -> None:
    text = yaml.safe_dump({"apiVersion": policy.API_VERSION, "kind": "ZTAPolicy", "metadata": {"name": "house"}})
    told = policy.parse("house.yaml", (text + yaml.safe_dump({"spec": SPEC})).encode())
    found = objects.policy_of(made())
    assert (found.name, found.floor, found.excepted) == (told.name, told.floor, told.excepted)
    assert (found.contract, [one.name for one in found.rules]) == (told.contract, ["not-root"])
    assert found.path == "ztapolicies/house"


def test_what_is_no_part_of_its_words_changes_neither_bytes_nor_digest() -> None:
    first, second = made(), made(status={"conditions": []})
    second["metadata"] |= {"uid": "u", "generation": 7, "labels": {"a": "b"}, "managedFields": [{}]}
    second["spec"] = dict(reversed(list(SPEC.items())))
    assert objects.file_of(first) == objects.file_of(second)
    assert objects.policy_of(first).digest == objects.policy_of(second).digest


@pytest.mark.parametrize(
    ("given_object", "field"),
    [
        (made() | {"apiVersion": "zta.forgeone.dev/v9"}, "ztapolicies/house: apiVersion"),
        (made() | {"kind": "Pod"}, "ztapolicies/house: kind"),
        (made(name="A"), "ztapolicies/A: metadata.name"),
        (made(name="a" * 64), f"ztapolicies/{'a' * 64}: metadata.name"),
        ({"metadata": {}}, "ztapolicies: metadata.name"),
        ({}, "ztapolicies: metadata.name"),
        ({"apiVersion": objects.API_VERSION, "kind": "ZTAPolicy", "metadata": {"name": "x"}}, "ztapolicies/x: spec"),
        (made(spec=None), "ztapolicies/house: spec"),
        (made(spec={"flour": True}), "ztapolicies/house: spec.flour"),
        (made(spec={"contract": {"runtime_policy_id": "x"}}), "ztapolicies/house: spec.contract.runtime_policy_id"),
        (made(spec={"contract": {"minimum_entropy": 0.5}}), "ztapolicies/house: spec.contract.minimum_entropy"),
        (
            made(spec={"rules": [{"name": "a", "at": ["create"], "expression": "container.usr == 0"}]}),
            "ztapolicies/house: spec.rules[0].expression",
        ),
    ],
)
def test_what_no_node_could_use_is_refused_with_object_and_field(given_object: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        objects.policy_of(given_object)
    assert caught.value.field == field


def test_a_list_gives_what_can_be_used_and_why_the_rest_cannot() -> None:
    found, refused = objects.policies_of([made("b"), made("a"), made("c", {"flour": 1}), {"metadata": None}])
    assert [one.name for one in found] == ["a", "b"]
    assert set(refused) == {"c", "None"}
    assert "spec.flour" in refused["c"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_whatever_an_object_says_it_is_a_policy_or_refused(spec: Any) -> None:
    try:
        found = objects.policy_of(made(spec=spec))
    except InvalidInput as error:
        assert error.field.startswith("ztapolicies/house")
    else:
        assert json.loads(objects.file_of(made(spec=spec)))["spec"] == spec
        assert found.name == "house"
