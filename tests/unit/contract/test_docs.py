"""docs/policies.md says what there is, and what it shows can be used."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from forgeone_shim.cluster import objects
from forgeone_shim.contract import facts, parse, policy, reader, render
from forgeone_shim.contract.facts import Point
from forgeone_shim.contract.model import PAYLOAD_TYPE, UNRESTRICTED, VOLUME_KINDS

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = (DOCS / "policies.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
POLICIES = [block for block in BLOCKS if "kind: ZTAPolicy" in block and objects.API_VERSION not in block]
OBJECTS = [block for block in BLOCKS if objects.API_VERSION in block]
CONTRACTS = [block for block in BLOCKS if "kind:" not in block]
DIGEST = "a" * 64


@pytest.mark.parametrize("text", POLICIES)
def test_a_policy_that_is_shown_can_be_used(text: str) -> None:
    assert policy.parse("it.yaml", text.encode()).rules


@pytest.mark.parametrize("text", OBJECTS)
def test_an_object_that_is_shown_can_be_used(text: str) -> None:
    assert objects.policy_of(yaml.safe_load(text)).contract != UNRESTRICTED


def contract_of(text: str) -> reader.Document:
    whole = re.sub(r"sha256:[0-9a-f]+\.\.\.", f"sha256:{DIGEST}", text)
    return parse.read("it", whole.encode(), ())[0]


@pytest.mark.parametrize("text", CONTRACTS)
def test_a_contract_that_is_shown_can_be_used(text: str) -> None:
    assert contract_of(text).contract != UNRESTRICTED


def test_one_shows_every_field_but_the_one_that_names_a_policy() -> None:
    shown = set().union(*(render.restrictions(contract_of(text).contract) for text in CONTRACTS))
    silent = {"runtime_policy_id", "rbac.update", "rbac.port_forward", "behaviour.baseline"}
    silent |= {"profile.network.node", "profile.network.dns"}
    paths = {".".join(path) for _, path in parse.FIELDS.values()}
    assert paths - shown == silent
    text = CONTRACTS[0]
    assert all(name.rpartition(".")[2] in text for name in silent - {"runtime_policy_id", "behaviour.baseline"})


def row(name: str) -> str:
    found = re.search(rf"^\| `{re.escape(name)}` \|(.*)\|$", PAGE, re.MULTILINE)
    assert found, name
    return found[1]


@pytest.mark.parametrize(
    ("variable", "kind"),
    [
        ("pod", facts.PodFacts),
        ("container", facts.ContainerFacts),
        ("container.mounts", facts.MountFacts),
        ("image", facts.ImageFacts),
        ("image.attestations", facts.AttestationFacts),
        ("runtime", facts.RuntimeFacts),
        ("node", facts.NodeFacts),
        ("request", facts.RequestFacts),
        ("contract", facts.ContractFacts),
    ],
)
def test_every_fact_is_told_to_those_who_write_rules(variable: str, kind: type) -> None:
    told = re.findall(r"`([a-z_]+)`", row(variable))
    assert [item.name for item in fields(kind) if item.name not in told] == []


def test_every_point_is_explained() -> None:
    assert all(row(point) for point in Point)


def test_every_key_of_a_policy_is_explained() -> None:
    keys = re.findall(r'"(\w+)"', Path(policy.__file__).read_text())
    wanted = {"floor", "namespaces", "exceptNamespaces", "contract", "requireSignedContract", "contractIssuers"}
    wanted |= {"requireVerifiedImage", "rules"}
    assert wanted <= {*keys}
    assert all(row(f"spec.{key}") for key in wanted)


def test_kinds_of_volumes_and_the_payload_type_are_told() -> None:
    assert all(f"`{kind}`" in (DOCS / "annotations.md").read_text() for kind in VOLUME_KINDS)
    assert PAYLOAD_TYPE in PAGE
