"""Templates of network configurations, as containerd's users write them."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.errors import InvalidInput
from forgeone_shim.network.cni.template import render

BOTH = ("10.1.0.0/24", "fd00:1::/64")
RANGES = """{
  "cniVersion": "1.0.0", "name": "pods",
  "plugins": [
    {"type": "ptp", "ipam": {
      "type": "host-local",
      "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
      "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]
    }}
  ]
}"""


def test_ranges_and_routes_of_both_families_are_filled_in() -> None:
    ipam = json.loads(render(RANGES, BOTH))["plugins"][0]["ipam"]
    assert ipam["ranges"] == [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]
    assert ipam["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]


def test_one_family_has_one_route() -> None:
    ipam = json.loads(render(RANGES, ("fd00:1::/64",)))["plugins"][0]["ipam"]
    assert ipam["routes"] == [{"dst": "::/0"}]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.PodCIDR}}", "10.1.0.0/24"),
        ("{{ .PodCIDR }}", "10.1.0.0/24"),
        ("a {{- .PodCIDR -}} b", "a10.1.0.0/24b"),
        ("{{range .Routes}}<{{.}}>{{end}}", "<0.0.0.0/0><::/0>"),
        ("{{range $one := .Routes}}{{$one}};{{end}}", "0.0.0.0/0;::/0;"),
        ("{{range .Routes}}{{$.PodCIDR}} {{end}}", "10.1.0.0/24 10.1.0.0/24 "),
        ("{{index .PodCIDRRanges 1}}", "fd00:1::/64"),
        ("{{(index .PodCIDRRanges 0)}}", "10.1.0.0/24"),
        ("{{/* a remark */}}x", "x"),
        ("{{if .Routes}}yes{{else}}no{{end}}", "yes"),
        ("{{range $i, $r := .Routes}}{{if $i}}b{{else}}a{{end}}{{end}}", "ab"),
    ],
)
def test_what_templates_use_is_understood(template: str, text: str) -> None:
    assert render(template, BOTH) == text


@pytest.mark.parametrize(
    "template",
    [
        "{{.PodSubnet}}",
        "{{ .PodCIDR | printf }}",
        '{{template "x"}}',
        "{{range .Routes}}",
        "{{if .Routes}}",
        "{{end}}",
        "{{else}}",
        "{{if .Routes}}{{else}}{{else}}{{end}}",
        "{{.PodCIDR",
        "{{.Routes}}",
        "{{range .PodCIDR}}{{end}}",
        "{{index .Routes 7}}",
        "{{index .PodCIDR 0}}",
        "{{range a b c}}{{end}}",
        "{{}}",
        "{{with .PodCIDR}}{{end}}",
        "{{if .Routes}}" * 40 + "{{end}}" * 40,
    ],
)
def test_everything_else_is_refused(template: str) -> None:
    with pytest.raises(InvalidInput, match=r"cni\.conf_template"):
        render(template, BOTH)


@given(st.text(alphabet="{}.-$ ,:=PodCIRangesiflt\n", max_size=60))
def test_no_template_does_more_than_be_refused(template: str) -> None:
    with contextlib.suppress(InvalidInput):
        render(template, BOTH)


@given(st.text(max_size=80).filter(lambda text: "{{" not in text))
def test_text_without_actions_stays_as_it_is(text: str) -> None:
    assert render(text, BOTH) == text
