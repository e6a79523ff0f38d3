from __future__ import annotations

import base64
import contextlib
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.errors import ForgeError, InvalidInput, PermissionDenied, Unavailable
from forgeone_shim.registry.auth import Authorizer, Challenge, parse_challenges, plan_token, read_token
from forgeone_shim.registry.hosts import Endpoint
from forgeone_shim.registry.model import Credentials

TLS = Endpoint("https", "reg.example", "/v2")
SCOPE = "repository:app:pull"
BEARER = Challenge("bearer", {"realm": "https://auth.example/token?a=b", "service": "reg", "scope": SCOPE})


def test_challenges_are_read_as_rfc7235_writes_them() -> None:
    header = r'Bearer realm="https://a.example/t",service="x \"y\"", scope="a,b c" , Basic realm=plain, Negotiate'
    assert parse_challenges([header, 'BASIC realm="two"']) == (
        Challenge("bearer", {"realm": "https://a.example/t", "service": 'x "y"', "scope": "a,b c"}),
        Challenge("basic", {"realm": "plain"}),
        Challenge("negotiate", {}),
        Challenge("basic", {"realm": "two"}),
    )


def test_a_token68_is_passed_over() -> None:
    found = parse_challenges(['Negotiate YWJj==, Basic realm="r"'])
    assert [challenge.scheme for challenge in found] == ["negotiate", "basic"]


def test_the_number_and_size_of_challenges_is_capped() -> None:
    assert len(parse_challenges(["a=1, " * 1000, "x " * 9000, *["Basic"] * 100])) <= 16


@given(st.lists(st.text(alphabet='abB ,="\\\t;:/', max_size=60) | st.text(max_size=40), max_size=4))
def test_any_header_is_read(headers: list[str]) -> None:
    for challenge in parse_challenges(headers):
        assert challenge.scheme


def test_a_login_asks_for_a_token_with_basic_authentication() -> None:
    request = plan_token(BEARER, TLS, Credentials(username="u", password="p"), SCOPE)
    assert request.authorization == "Basic " + base64.b64encode(b"u:p").decode()
    assert parse_qs(urlsplit(request.url).query) == {"a": ["b"], "service": ["reg"], "scope": [SCOPE]}
    assert request.body is None
    assert "Basic" not in repr(request)


@pytest.mark.parametrize(
    "credentials", [Credentials(identity_token="idt"), Credentials(username="<token>", password="idt")]
)
def test_an_identity_token_is_traded_by_oauth2(credentials: Credentials) -> None:
    request = plan_token(BEARER, TLS, credentials, SCOPE)
    assert request.authorization == ""
    assert request.body is not None
    form = dict(parse_qsl(request.body.decode()))
    assert form["grant_type"] == "refresh_token"
    assert form["refresh_token"] == "idt"
    assert "idt" not in request.url


def test_without_credentials_a_token_is_asked_for_anonymously() -> None:
    request = plan_token(Challenge("bearer", {"realm": "https://auth.example/t"}), TLS, None, SCOPE)
    assert (request.authorization, request.body) == ("", None)
    assert parse_qs(urlsplit(request.url).query) == {"scope": [SCOPE]}


@pytest.mark.parametrize(
    "realm", ["", "auth.example", "http://auth.example/t", "https://u:p@auth.example/", "file:///x"]
)
def test_a_realm_that_is_not_safe_is_refused(realm: str) -> None:
    with pytest.raises(PermissionDenied):
        plan_token(Challenge("bearer", {"realm": realm}), TLS, Credentials(username="u", password="p"), SCOPE)


@pytest.mark.parametrize("data", [b'{"token": "abc.def"}', b'{"access_token": "abc.def", "expires_in": 3, "x": [1]}'])
def test_either_name_of_the_token_is_read(data: bytes) -> None:
    assert read_token(data, "https://auth.example") == "abc.def"


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"token": 3}', b'{"token": "a b"}', b'{"token": "a\\r\\nX: y"}', b"[" * 5000]
)
def test_an_answer_without_a_usable_token_is_refused(data: bytes) -> None:
    with pytest.raises(Unavailable):
        read_token(data, "https://auth.example")


@given(st.binary(max_size=100))
def test_any_token_answer_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ForgeError):
        read_token(data, "server")


def test_a_registry_token_is_sent_at_once_and_never_replaced() -> None:
    way = Authorizer(Endpoint("https", "h", "/v2", credentials=Credentials(registry_token="t")), SCOPE, _never)
    assert way.header == "Bearer t"
    with pytest.raises(PermissionDenied, match="refused"):
        way.answer([BEARER], "Bearer t")


def test_basic_credentials_are_sent_only_once_asked_for_and_not_twice() -> None:
    credentials = Credentials(auth=base64.b64encode(b"u:p:q").decode())
    way = Authorizer(Endpoint("https", "h", "/v2", credentials=credentials), SCOPE, _never)
    assert way.header == ""
    way.answer([Challenge("basic", {})], "")
    assert way.header == "Basic " + base64.b64encode(b"u:p:q").decode()
    with pytest.raises(PermissionDenied):
        way.answer([Challenge("basic", {})], way.header)


def test_without_credentials_a_basic_challenge_is_a_denial_that_says_so() -> None:
    with pytest.raises(PermissionDenied, match="no credentials"):
        Authorizer(TLS, SCOPE, _never).answer([Challenge("basic", {})], "")


def test_a_second_thread_uses_the_token_the_first_one_got() -> None:
    asked: list[object] = []

    def ask(request: object) -> bytes:
        asked.append(request)
        return b'{"token": "t"}'

    way = Authorizer(TLS, SCOPE, ask)
    way.answer([BEARER], "")
    way.answer([BEARER], "")
    assert len(asked) == 1
    assert way.header == "Bearer t"


@pytest.mark.parametrize(
    "auth", ["%%%", base64.b64encode(b"nocolon").decode(), base64.b64encode(b"\xff:\xff").decode()]
)
def test_a_malformed_auth_field_is_refused_without_showing_it(auth: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Credentials(auth=auth).login()
    assert auth not in str(caught.value)


def _never(request: object) -> bytes:
    raise AssertionError(request)
