"""Authorities and certificates over their lives: no API server is ever shown what it has not been told of."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from cri.admission import certificates
from cri.admission.certificates import Pair, State, Terms

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = certificates.server_names("hook", "system")
TERMS = Terms(names=NAMES, certificate=timedelta(days=90), ca=timedelta(days=365))


def believed(bundle: bytes, tls: Pair, when: datetime) -> bool:
    """Whether somebody who was told these authorities believes the server at that time."""
    store = Store(x509.load_pem_x509_certificates(bundle))
    verifier = PolicyBuilder().store(store).time(when).build_server_verifier(x509.DNSName(NAMES[0]))
    try:
        verifier.verify(tls.parsed, [])
    except VerificationError:
        return False
    return True


def test_a_secret_that_is_empty_gets_an_authority_and_a_certificate() -> None:
    made = certificates.renewed(State(), TERMS, NOW)
    assert made.ca is not None and made.tls is not None
    assert made.next is None
    assert believed(certificates.bundle(made, NOW), made.tls, NOW)
    assert certificates.renewed(made, TERMS, NOW) is made
    assert certificates.read(certificates.written(made)) == made
    assert NOW < certificates.due(made) < NOW + timedelta(days=61)


def test_through_ten_years_no_certificate_is_shown_that_was_not_told_days_before() -> None:
    state = certificates.renewed(State(), TERMS, NOW)
    told, when, authorities = certificates.bundle(state, NOW), NOW, set()
    while when < NOW + timedelta(days=3650):
        when += timedelta(days=4)
        state = certificates.renewed(state, TERMS, when)
        assert state.tls is not None and state.ca is not None
        # Whoever was told days ago believes what is shown now.
        assert believed(told, state.tls, when)
        assert state.tls.parsed.not_valid_after_utc > when + timedelta(days=7)
        told = certificates.bundle(state, when)
        assert told.count(b"BEGIN") <= 3
        authorities.add(state.ca.certificate)
    assert len(authorities) > 10


def test_there_is_nothing_to_do_before_it_is_due_and_something_then() -> None:
    state, when = certificates.renewed(State(), TERMS, NOW), NOW
    for _ in range(40):
        due = certificates.due(state)
        assert due > when
        assert certificates.renewed(state, TERMS, due - timedelta(seconds=1)) is state
        when, before = due, state
        state = certificates.renewed(state, TERMS, due)
        assert state is not before


def test_replicas_that_slept_through_it_all_begin_anew() -> None:
    state = certificates.renewed(State(), TERMS, NOW)
    late = NOW + timedelta(days=400)
    made = certificates.renewed(state, TERMS, late)
    assert made.tls is not None and made.ca != state.ca
    assert believed(certificates.bundle(made, late), made.tls, late)
    # With a successor that was told it takes over.
    state = certificates.renewed(state, TERMS, NOW + timedelta(days=250))
    assert state.next is not None
    made = certificates.renewed(state, TERMS, NOW + timedelta(days=366))
    assert made.ca == state.next


def test_a_certificate_does_not_outlive_its_authority() -> None:
    terms = replace(TERMS, certificate=timedelta(days=365))
    state = certificates.renewed(State(), terms, NOW)
    assert state.ca is not None
    made = certificates.renewed(replace(state, tls=None), terms, NOW + timedelta(days=100))
    assert made.tls is not None
    assert made.tls.parsed.not_valid_after_utc == state.ca.parsed.not_valid_after_utc


def test_replicas_that_are_told_different_names_agree_on_both() -> None:
    one = certificates.renewed(State(), TERMS, NOW)
    other = replace(TERMS, names=certificates.server_names("other", "system"))
    both = certificates.renewed(one, other, NOW)
    assert both.ca == one.ca and both.tls != one.tls
    assert certificates.renewed(both, TERMS, NOW) is both
    assert certificates.renewed(both, other, NOW) is both


def _spoiled(state: State, key: str, value: str) -> State:
    return certificates.read(certificates.written(state) | {key: value})


@pytest.mark.parametrize("value", ["", "!", base64.b64encode(b"-----BEGIN CERTIFICATE-----").decode(), "AA=="])
@pytest.mark.parametrize("key", ["ca.crt", "ca.key", "tls.crt", "tls.key"])
def test_what_is_spoiled_is_made_anew(key: str, value: str) -> None:
    state = certificates.renewed(State(), TERMS, NOW)
    made = certificates.renewed(_spoiled(state, key, value), TERMS, NOW)
    assert made.tls is not None
    assert (made.ca == state.ca) is key.startswith("tls")
    # What it has signed is still shown for a moment.
    assert state.ca is not None and state.tls is not None
    if key == "ca.key":
        assert believed(certificates.bundle(made, NOW), state.tls, NOW)
    assert believed(certificates.bundle(made, NOW), made.tls, NOW)


def test_a_key_of_another_certificate_counts_for_nothing() -> None:
    one, other = (certificates.renewed(State(), TERMS, NOW) for _ in range(2))
    mixed = _spoiled(one, "tls.key", certificates.written(other)["tls.key"])
    assert mixed.tls is None
    foreign = certificates.renewed(replace(one, tls=other.tls), TERMS, NOW)
    assert foreign.tls != other.tls
    assert certificates.read({"ca.crt": 7, "ca.key": None}) == State()
