"""Flags and variables of forgeone-admission."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cri.admission import main, options
from cri.admission.options import Options
from forgeone_shim.errors import InvalidInput

PAGE = Path(__file__).resolve().parents[3] / "docs/admission.md"


def test_without_any_all_is_as_documented() -> None:
    assert options.parse([], {}) == Options(handlers={})


def test_a_flag_goes_before_its_variable() -> None:
    environ = {
        "FORGEONE_ADMISSION_LISTEN": "127.0.0.1:1",
        "FORGEONE_ADMISSION_VALIDATING": "a, b",
        "FORGEONE_ADMISSION_FILL_RUNTIME_CLASS": "true",
        "FORGEONE_ADMISSION_HANDLER": "house=wasm,lab=auto",
        "FORGEONE_ADMISSION_DEFAULT_ENGINE": "none",
        "FORGEONE_ADMISSION_MAX_CONNECTIONS": "7",
    }
    found = options.parse([], environ)
    assert (found.address, found.port, found.validating) == ("127.0.0.1", 1, ("a", "b"))
    assert (found.fill, found.default_engine, found.max_connections) == (True, "", 7)
    assert found.handlers == {"house": "wasm", "lab": "auto"}
    found = options.parse(
        ["--listen", "[::1]:2", "--validating", "c", "--validating", "d", "--no-fill-runtime-class"], environ
    )
    assert (found.address, found.port, found.validating, found.fill) == ("::1", 2, ("c", "d"), False)


@pytest.mark.parametrize(
    ("argv", "field"),
    [
        (["--listen", "8443"], "--listen"),
        (["--listen", "host:8443"], "--listen"),
        (["--listen", ":0"], "--port"),
        (["--namespace", "A"], "--namespace"),
        (["--service", "a.b"], "--service"),
        (["--secret", "A"], "--secret"),
        (["--secret", ""], "--secret"),
        (["--tls-dir", "certs"], "--tls-dir"),
        (["--tls-dir", "/certs", "--validating", "a"], "--tls-dir"),
        (["--certificate-days", "0"], "--certificate-days"),
        (["--certificate-days", "x"], "--certificate-days"),
        (["--certificate-days", "400", "--ca-days", "300"], "--certificate-days"),
        (["--client-name", "a"], "--client-name"),
        (["--policies", "some"], "--policies"),
        (["--policies", "none", "--node-policy", "a"], "--node-policy"),
        (["--default-policy", "A"], "--default-policy"),
        (["--default-engine", "docker"], "--default-engine"),
        (["--handler", "house"], "--handler"),
        (["--handler", "house=docker"], "--handler"),
        (["--handler", "a=wasm", "--handler", "a=wasm"], "--handler"),
        (["--max-body-bytes", "1"], "--max-body-bytes"),
        (["--log-level", "loud"], "--log-level"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(argv: list[str], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        options.parse(argv, {})
    assert caught.value.field == field


def test_a_variable_is_checked_as_its_flag_is() -> None:
    with pytest.raises(InvalidInput, match="FILL_RUNTIME_CLASS"):
        options.parse([], {"FORGEONE_ADMISSION_FILL_RUNTIME_CLASS": "yes"})
    with pytest.raises(InvalidInput, match="--policies"):
        options.parse([], {"FORGEONE_ADMISSION_POLICIES": "some"})


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--listen", "x"]) == 2
    assert capsys.readouterr().err.startswith("forgeone-admission: --listen: ")


def test_every_flag_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options.parse(["--help"], {})
    flags = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--version"}
    table = "\n".join(line for line in PAGE.read_text().splitlines() if line.startswith("| `--"))
    assert flags - {"--no-fill-runtime-class"} == {
        *re.findall(r"`(--[a-z-]+)`", table.replace("--policies cluster", ""))
    }
