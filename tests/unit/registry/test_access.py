"""Who is asked, and who is told what: mirrors, credentials, redirects."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest

from forgeone_shim.deadline import NEVER
from forgeone_shim.errors import FailedPrecondition, InvalidInput, PermissionDenied, Unavailable
from forgeone_shim.registry.model import Credentials

from .conftest import Node
from .registry_double import Contents, FakeRegistry, Handler

LOGIN = Credentials(username="alice", password="s3cret")
BASIC = "Basic " + base64.b64encode(b"alice:s3cret").decode()


def needs(authorization: str, challenge: str) -> Callable[[Handler], bool]:
    def hook(handler: Handler) -> bool:
        if handler.headers.get("Authorization") == authorization:
            return False
        return handler.answer(401, b"{}", {"WWW-Authenticate": challenge})

    return hook


def sent_to(registry: FakeRegistry) -> str:
    """Everything this host was told."""
    return json.dumps([[seen.path, seen.headers, seen.body.decode()] for seen in registry.seen])


def told(registry: FakeRegistry) -> bool:
    return any("Authorization" in seen.headers for seen in registry.seen)


@pytest.mark.parametrize(
    "credentials", [LOGIN, Credentials(auth=base64.b64encode(b"alice:s3cret").decode())], ids=["login", "auth"]
)
def test_basic_authentication(node: Node, registry: FakeRegistry, contents: Contents, credentials: Credentials) -> None:
    contents.add_image("v1")
    registry.hook = needs(BASIC, 'Basic realm="x"')
    assert node.images.pull(f"{registry.host}/app:v1", credentials, NEVER)
    assert sum(seen.headers.get("Authorization") is None for seen in registry.seen) == 1


@pytest.mark.parametrize("credentials", [None, Credentials(username="alice", password="wr0ng")], ids=["none", "wrong"])
def test_who_may_not_is_denied_without_showing_what_was_tried(
    node: Node, registry: FakeRegistry, contents: Contents, credentials: Credentials | None
) -> None:
    contents.add_image("v1")
    registry.hook = needs(BASIC, 'Basic realm="x"')
    with pytest.raises(PermissionDenied, match="unauthorized") as caught:
        node.images.pull(f"{registry.host}/app:v1", credentials, NEVER)
    assert "wr0ng" not in str(caught.value)


def test_forbidden_is_a_denial_in_the_registrys_words(node: Node, registry: FakeRegistry) -> None:
    said = {"errors": [{"code": "DENIED", "message": "go\naway"}]}
    registry.hook = lambda handler: handler.answer(403, json.dumps(said).encode())
    with pytest.raises(PermissionDenied, match="DENIED: goaway"):
        node.images.pull(f"{registry.host}/app:v1", None, NEVER)


def token_server(server: FakeRegistry, token: str, check: Callable[[Handler], bool]) -> None:
    def hook(handler: Handler) -> bool:
        if check(handler):
            return handler.answer(200, json.dumps({"token": token, "expires_in": 60}).encode())
        return handler.answer(401, b"{}")

    server.hook = hook


@pytest.mark.parametrize(
    ("credentials", "check"),
    [
        (None, lambda handler: "Authorization" not in handler.headers),
        (LOGIN, lambda handler: handler.headers.get("Authorization") == BASIC),
        (Credentials(identity_token="idt"), lambda handler: b"refresh_token=idt" in handler.body),
    ],
    ids=["anonymous", "login", "identity"],
)
def test_bearer_authentication(
    node: Node,
    registry: FakeRegistry,
    another: FakeRegistry,
    contents: Contents,
    credentials: Credentials | None,
    check: Callable[[Handler], bool],
) -> None:
    contents.add_image("v1")
    token_server(another, "tok.en", check)
    challenge = f'Bearer realm="{another.url}/token",service="reg",scope="repository:app:pull"'
    registry.hook = needs("Bearer tok.en", challenge)
    assert node.images.pull(f"{registry.host}/app:v1", credentials, NEVER)
    assert len(another.seen) == 1
    assert "s3cret" not in sent_to(registry)


def test_a_registry_token_goes_straight_to_the_registry(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    contents.add_image("v1")
    registry.hook = needs("Bearer given", 'Bearer realm="http://127.0.0.1:9/"')
    assert node.images.pull(f"{registry.host}/app:v1", Credentials(registry_token="given"), NEVER)
    assert all(seen.headers.get("Authorization") == "Bearer given" for seen in registry.seen)


def test_a_token_that_expires_during_a_pull_is_renewed(
    node: Node, registry: FakeRegistry, another: FakeRegistry, contents: Contents
) -> None:
    contents.add_image("v1")
    given: list[str] = []

    def tokens(handler: Handler) -> bool:
        given.append(f"t{len(given)}")
        return handler.answer(200, json.dumps({"token": given[-1]}).encode())

    def one_use(handler: Handler) -> bool:
        token = handler.headers.get("Authorization", "").removeprefix("Bearer ")
        if token in given and token not in used:
            used.add(token)
            return False
        return handler.answer(401, b"", {"WWW-Authenticate": f'Bearer realm="{another.url}/t"'})

    used: set[str] = set()
    another.hook = tokens
    registry.hook = one_use
    assert node.images.pull(f"{registry.host}/app:v1", LOGIN, NEVER)
    assert len(given) == 3


def test_a_token_server_that_refuses_is_a_denial(
    node: Node, registry: FakeRegistry, another: FakeRegistry, contents: Contents
) -> None:
    token_server(another, "t", lambda handler: False)
    registry.hook = needs("Bearer t", f'Bearer realm="{another.url}/token"')
    with pytest.raises(PermissionDenied, match="token server"):
        node.images.pull(f"{registry.host}/app:v1", LOGIN, NEVER)


def test_a_mirror_is_asked_first_and_told_whose_images_it_mirrors(
    make_node: Callable[..., Node], registry: FakeRegistry, contents: Contents
) -> None:
    node = make_node()
    node.hosts("docker.io", f'[host."{registry.url}"]')
    contents.add_image("latest")
    image = node.images.pull("app", None, NEVER)
    assert image.repo_tags == ("docker.io/library/app:latest",)
    assert registry.seen[0].path == "/v2/library/app/manifests/latest?ns=docker.io"


def test_a_mirror_for_everything_else_is_in_default(
    make_node: Callable[..., Node], registry: FakeRegistry, contents: Contents
) -> None:
    node = make_node()
    node.hosts("_default", f'server = "{registry.url}"')
    contents.add_image("v1")
    assert node.images.pull("somewhere.example/app:v1", None, NEVER)


@pytest.mark.parametrize("failure", [404, 403, 500, 200])
def test_where_a_mirror_fails_the_next_host_is_asked(
    node: Node, registry: FakeRegistry, another: FakeRegistry, contents: Contents, failure: int
) -> None:
    node.hosts(registry.host, f'server = "{registry.url}"\n[host."http://127.0.0.1:9"]\n[host."{another.url}"]')
    another.hook = lambda handler: handler.answer(failure, b"<html>hello</html>")
    contents.add_image("v1")
    assert node.images.pull(f"{registry.host}/app:v1", None, NEVER)


def test_a_mirror_that_may_not_resolve_is_asked_by_digest_only(
    node: Node, registry: FakeRegistry, another: FakeRegistry, contents: Contents
) -> None:
    text = f'server = "{registry.url}"\n[host."{another.url}"]\ncapabilities = ["pull"]'
    node.hosts(registry.host, text)
    manifest = contents.add_image("v1")
    another.contents = contents
    node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    assert another.paths("manifests/v1") == []
    assert len(another.paths(contents.layer_digests(manifest)[0])) == 1
    assert registry.paths("blobs/") == []


def test_a_proxy_of_the_environment_is_used(
    make_node: Callable[..., Node], registry: FakeRegistry, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", registry.url)
    node = make_node()
    node.hosts("far.example", 'server = "http://far.example"')
    contents.add_image("v1")
    assert node.images.pull("far.example/app:v1", None, NEVER)
    assert registry.seen[0].path == "http://far.example/v2/app/manifests/v1"


@pytest.mark.parametrize("packed", ["gzip", "zstd", "none"])
def test_a_mirror_that_serves_rubbish_is_passed_over(
    node: Node, registry: FakeRegistry, another: FakeRegistry, contents: Contents, packed: str
) -> None:
    node.hosts(registry.host, f'server = "{registry.url}"\n[host."{another.url}"]')
    manifest = contents.add_image("v1", packed=packed)
    another.contents = Contents(dict(contents.blobs), dict(contents.manifests))
    (layer,) = contents.layer_digests(manifest)
    another.contents.blobs[layer] = bytes(len(contents.blobs[layer]))
    assert node.images.pull(f"{registry.host}/app:v1", None, NEVER)


def test_a_pulls_credentials_are_never_told_to_a_mirror(
    node: Node, registry: FakeRegistry, another: FakeRegistry, contents: Contents
) -> None:
    node.hosts(registry.host, f'server = "{registry.url}"\n[host."{another.url}"]')
    another.hook = needs("never", 'Basic realm="x"')
    registry.hook = needs(BASIC, 'Basic realm="x"')
    contents.add_image("v1")
    assert node.images.pull(f"{registry.host}/app:v1", LOGIN, NEVER)
    assert not told(another)


def test_a_mirror_has_credentials_of_its_own(
    node: Node, registry: FakeRegistry, another: FakeRegistry, contents: Contents
) -> None:
    own = "Basic " + base64.b64encode(b"mirror:pw").decode()
    text = f'server = "{registry.url}"\n[host."{another.url}"]\n[host."{another.url}".auth]\n'
    node.hosts(registry.host, text + 'username = "mirror"\npassword = "pw"', mode=0o600)
    another.contents = contents
    another.hook = needs(own, 'Basic realm="x"')
    contents.add_image("v1")
    assert node.images.pull(f"{registry.host}/app:v1", LOGIN, NEVER)
    assert "s3cret" not in sent_to(another)
    assert not told(registry)


def test_credentials_for_another_host_stay_home(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    registry.hook = needs(BASIC, 'Basic realm="x"')
    elsewhere = Credentials(username="alice", password="s3cret", server_address="elsewhere.example")
    with pytest.raises(PermissionDenied, match="no credentials"):
        node.images.pull(f"{registry.host}/app:v1", elsewhere, NEVER)
    assert not told(registry)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_takes_no_secret_along(
    node: Node, registry: FakeRegistry, another: FakeRegistry, contents: Contents, status: int
) -> None:
    node.hosts(registry.host, f'server = "{registry.url}"\n[header]\nx-key = "hush"')
    contents.add_image("v1")
    another.contents = contents
    basic = needs(BASIC, 'Basic realm="x"')

    def hook(handler: Handler) -> bool:
        if basic(handler):
            return True
        away = "/blobs/" in handler.path
        return away and handler.answer(status, b"moved", {"Location": f"{another.url}{handler.path}?sig=x"})

    registry.hook = hook
    assert node.images.pull(f"{registry.host}/app:v1", LOGIN, NEVER)
    assert another.seen
    assert not told(another)
    assert "hush" not in sent_to(another)
    assert "hush" in sent_to(registry)


def test_a_redirect_on_the_same_host_keeps_credentials(node: Node, registry: FakeRegistry, contents: Contents) -> None:
    contents.add_image("v1")
    basic = needs(BASIC, 'Basic realm="x"')

    def hook(handler: Handler) -> bool:
        if basic(handler):
            return True
        moved = handler.path.startswith("/v2/app/blobs")
        return moved and handler.answer(307, b"", {"Location": "/v2/moved" + handler.path.removeprefix("/v2/app")})

    registry.hook = hook
    assert node.images.pull(f"{registry.host}/app:v1", LOGIN, NEVER)


@pytest.mark.parametrize("location", ["", "http://[", "ftp://x/", "http://u:p@127.0.0.1/", "//", "\x00"])
def test_a_redirect_to_nowhere_is_refused(node: Node, registry: FakeRegistry, location: str) -> None:
    registry.hook = lambda handler: handler.answer(302, b"", {"Location": location})
    with pytest.raises(Unavailable, match="redirect"):
        node.images.pull(f"{registry.host}/app:v1", None, NEVER)


def test_a_circle_of_redirects_ends(node: Node, registry: FakeRegistry) -> None:
    registry.hook = lambda handler: handler.answer(302, b"", {"Location": handler.path})
    with pytest.raises(Unavailable, match="more than 5 redirects"):
        node.images.pull(f"{registry.host}/app:v1", None, NEVER)


def test_pulls_with_other_credentials_are_pulls_of_their_own(
    node: Node, registry: FakeRegistry, contents: Contents
) -> None:
    contents.add_image("v1")
    registry.hook = needs(BASIC, 'Basic realm="x"')
    node.images.pull(f"{registry.host}/app:v1", LOGIN, NEVER)
    with pytest.raises(PermissionDenied):
        node.images.pull(f"{registry.host}/app:v1", None, NEVER)


def test_malformed_credentials_are_refused_without_being_shown(node: Node, registry: FakeRegistry) -> None:
    registry.hook = needs(BASIC, 'Basic realm="x"')
    with pytest.raises(InvalidInput) as caught:
        node.images.pull(f"{registry.host}/app:v1", Credentials(auth="%%s3cret"), NEVER)
    assert "s3cret" not in str(caught.value)


def test_secrets_reach_neither_the_database_nor_the_output(
    node: Node, registry: FakeRegistry, contents: Contents, capfd: pytest.CaptureFixture[str]
) -> None:
    contents.add_image("v1")
    node.hosts(registry.host, f'server = "{registry.url}"\n[host."http://127.0.0.1:9"]')
    registry.hook = needs(BASIC, 'Basic realm="x"')
    node.images.pull(f"{registry.host}/app:v1", LOGIN, NEVER)
    written = "".join(capfd.readouterr()) + "".join(
        path.read_bytes().decode(errors="replace") for path in node.root.rglob("*") if path.is_file()
    )
    for secret in ("s3cret", BASIC, BASIC.removeprefix("Basic ")):
        assert secret not in written


def test_a_broken_hosts_file_stops_the_pull(node: Node, registry: FakeRegistry) -> None:
    node.hosts(registry.host, "server = [")
    with pytest.raises(FailedPrecondition, match=r"hosts\.toml"):
        node.images.pull(f"{registry.host}/app:v1", None, NEVER)
    assert registry.seen == []
