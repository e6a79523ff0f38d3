from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgeone_shim.errors import FailedPrecondition, ForgeError
from forgeone_shim.registry.hosts import Endpoint, endpoints_for, parse_hosts, place_credentials
from forgeone_shim.registry.model import Credentials

HERE = Path("/certs")


def plan(text: str, registry: str = "reg.example", *, secret: bool = True) -> tuple[Endpoint, ...]:
    return parse_hosts(text, HERE, registry, secret=secret)


def test_without_configuration_the_registry_is_asked_over_tls(tmp_path: Path) -> None:
    assert endpoints_for(tmp_path, "reg.example:5000") == (Endpoint("https", "reg.example:5000", "/v2"),)
    assert endpoints_for(tmp_path, "docker.io") == (Endpoint("https", "registry-1.docker.io", "/v2"),)


def test_mirrors_come_in_the_files_order_and_the_server_last() -> None:
    text = """
server = "https://upstream.example/proxy"
[host."https://b.example"]
  capabilities = ["pull"]
[host."https://b.example".header]
  x-one = ["1", "2"]
[host."http://a.example:5000"]
[host."https://odd.example/api"]
  override_path = true
  dial_timeout = "1m500ms"
"""
    b, a, odd, server = plan(text)
    assert (b.origin, b.path, b.pull, b.resolve, b.referrers) == ("https://b.example", "/v2", True, False, False)
    assert a.referrers
    assert b.headers == (("x-one", "1"), ("x-one", "2"))
    assert (a.origin, a.namespace) == ("http://a.example:5000", "reg.example")
    assert (odd.path, odd.dial_timeout) == ("/api", 60.5)
    assert (server.origin, server.path) == ("https://upstream.example", "/proxy/v2")


def test_without_a_server_the_registry_itself_is_the_last_resort() -> None:
    assert [e.origin for e in plan('[host."https://m.example"]')] == ["https://m.example", "https://reg.example"]
    assert plan('[host."https://m.example"]', "docker.io")[-1].host == "registry-1.docker.io"


def test_tls_files_are_relative_to_the_file() -> None:
    (endpoint,) = plan('ca = ["ca.pem", "/abs.pem"]\nclient = [["c.crt", "c.key"], ["both.pem", ""], "one.pem"]')
    assert endpoint.tls.ca == (HERE / "ca.pem", Path("/abs.pem"))
    assert endpoint.tls.client == (
        (HERE / "c.crt", HERE / "c.key"),
        (HERE / "both.pem", None),
        (HERE / "one.pem", None),
    )


def test_plain_http_with_tls_settings_tries_tls_first() -> None:
    text = 'server = "http://reg.example:5000"\nskip_verify = true'
    assert [e.scheme for e in plan(text)] == ["https", "http"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("mirror = 1", "mirror: unknown key"),
        ('[host."https://m"]\nskip_verfy = true', 'host."https://m".skip_verfy: unknown key'),
        ('[host."ftp://m"]', "ftp://m"),
        ('[host."https://user:pw@m"]', "https://m"),
        ('[host."https://m?x=1"]', "https://m"),
        ('capabilities = ["fly"]', "fly"),
        ("skip_verify = 1", "skip_verify"),
        ('client = [["a", "b", "c"]]', "client"),
        ('dial_timeout = "soon"', "dial_timeout"),
        ('[header]\n"x y" = "1"', "x y"),
        ('[header]\nx = "a\\r\\nb"', "header.x"),
        ("host = 3", "host"),
        ("server = 3", "server"),
        ("[auth]\npasswort = 'x'", "auth"),
        ("[auth]", "auth"),
        ("a b", "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_and_says_where(text: str, names: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        plan(text)
    assert names in str(caught.value)
    assert "/certs/hosts.toml" in str(caught.value)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "registry"),
    [("reg.example_5000_", "reg.example:5000"), ("reg.example:5000", "reg.example:5000"), ("_default", "any.example")],
)
def test_folders_are_found_as_containerd_finds_them(tmp_path: Path, folder: str, registry: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "hosts.toml").write_text('[host."https://m.example"]')
    assert endpoints_for(tmp_path, registry)[0].host == "m.example"


def test_a_folder_in_dockers_layout_gives_certificates(tmp_path: Path) -> None:
    folder = tmp_path / "reg.example"
    folder.mkdir()
    for name in ("ca.crt", "me.cert", "me.key"):
        (folder / name).touch()
    (endpoint,) = endpoints_for(tmp_path, "reg.example")
    assert endpoint.tls.ca == (folder / "ca.crt",)
    assert endpoint.tls.client == ((folder / "me.cert", folder / "me.key"),)


MIRROR = '[host."https://m.example"]\n[host."https://m.example".auth]\n'


def test_mirror_credentials_come_from_a_file_only_its_owner_reads(tmp_path: Path) -> None:
    folder = tmp_path / "reg.example"
    folder.mkdir()
    (folder / "hosts.toml").write_text(MIRROR + 'file = "secret.toml"')
    secret = folder / "secret.toml"
    secret.write_text('username = "u"\npassword = "p"')
    secret.chmod(0o640)
    with pytest.raises(FailedPrecondition, match="chmod 600"):
        endpoints_for(tmp_path, "reg.example")
    secret.chmod(0o600)
    mirror, registry = endpoints_for(tmp_path, "reg.example")
    assert mirror.credentials == Credentials(username="u", password="p")
    assert registry.credentials is None


def test_inline_credentials_need_a_private_file() -> None:
    text = MIRROR + 'registry_token = "t"'
    assert plan(text)[0].credentials == Credentials(registry_token="t")
    with pytest.raises(FailedPrecondition, match="chmod 600"):
        plan(text, secret=False)


@pytest.mark.parametrize(
    ("registry", "server_address", "served"),
    [
        ("reg.example", "", ["https://reg.example"]),
        ("reg.example", "https://reg.example/v1/", ["https://reg.example"]),
        ("reg.example", "reg.example:443", ["https://reg.example"]),
        ("reg.example", "m.example", ["https://m.example"]),
        ("reg.example", "other.example", []),
        ("reg.example", "evil.example/reg.example", []),
        ("docker.io", "https://index.docker.io/v1/", ["https://registry-1.docker.io"]),
        ("docker.io", "", ["https://registry-1.docker.io"]),
    ],
)
def test_a_pulls_credentials_go_only_to_the_host_they_are_for(
    registry: str, server_address: str, served: list[str]
) -> None:
    given_credentials = Credentials(username="u", password="p", server_address=server_address)
    placed = place_credentials(plan('[host."https://m.example"]', registry), registry, given_credentials)
    assert [e.origin for e in placed if e.credentials] == served


def test_secrets_stay_out_of_reprs() -> None:
    secrets = Credentials(username="alice", password="hunter2", auth="YTpi", identity_token="idt", registry_token="rt")
    endpoint = Endpoint("https", "h", "/v2", headers=(("authorization", "hunter2"),), credentials=secrets)
    for secret in ("alice", "hunter2", "YTpi", "idt", "'rt'"):
        assert secret not in repr(endpoint)


toml_values = st.recursive(
    st.booleans() | st.integers(-5, 5) | st.text(max_size=8) | st.sampled_from(["https://m", "1s", "pull"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)
keys = st.sampled_from(
    ["capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout", "auth", "server", "host"]
)


@settings(max_examples=150)
@given(st.dictionaries(keys, toml_values, max_size=5), st.dictionaries(keys, toml_values, max_size=4))
def test_any_tables_make_a_plan_or_a_forge_error(root: dict[str, object], host: dict[str, object]) -> None:
    text = "".join(f"{key} = {_toml(value)}\n" for key, value in root.items() if key != "host")
    text += '[host."https://m.example"]\n' + "".join(f"{key} = {_toml(value)}\n" for key, value in host.items())
    tomllib.loads(text)
    with contextlib.suppress(ForgeError):
        assert plan(text)


@given(st.text(max_size=80))
def test_any_text_is_a_plan_or_a_forge_error(text: str) -> None:
    with contextlib.suppress(ForgeError):
        plan(text)


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case str():
            return '"' + "".join(f"\\U{ord(c):08x}" for c in value) + '"'
        case list():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    raise AssertionError(value)
