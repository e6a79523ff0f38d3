"""Programs that are asked about images: what they are told, what answers mean, and that none can hold up a node."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forgeone_shim.config.model import SignaturesConfig
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import DeadlineExceeded, UntrustedImage
from forgeone_shim.registry.model import Credentials
from forgeone_shim.registry.reference import Reference
from forgeone_shim.registry.verifiers import Target, Verifiers, auth_document

from .conftest import Node
from .registry_double import Contents, FakeRegistry, sha256

IMAGE = Reference.parse("acme.example/app:v1")
TARGET = Target("application/vnd.oci.image.manifest.v1+json", sha256(b"it"), 2)
Program = Callable[..., Path]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    folder = tmp_path / "verifiers"
    folder.mkdir(mode=0o755)

    def write(text: str, name: str = "house", mode: int = 0o755) -> Path:
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(mode)
        return folder

    return write


def refused(folder: Path, text: str, timeout: float = 10.0) -> None:
    with pytest.raises(UntrustedImage, match=text):
        Verifiers(folder, timeout).check(IMAGE, TARGET, None, NEVER)


def test_a_program_is_told_name_digest_and_descriptor(program: Program, tmp_path: Path) -> None:
    folder = program(f'for word; do echo "$word"; done > {tmp_path}/words; cat > {tmp_path}/stdin')
    assert Verifiers(folder, 10.0).check(IMAGE, TARGET, None, NEVER) == ("house",)
    media_type = "application/vnd.oci.descriptor.v1+json"
    words = ["-name", "acme.example/app:v1", "-digest", TARGET.digest, "-stdin-media-type", media_type]
    assert (tmp_path / "words").read_text().splitlines() == words
    assert json.loads((tmp_path / "stdin").read_text()) == {
        "mediaType": TARGET.media_type,
        "digest": TARGET.digest,
        "size": 2,
    }


def test_all_have_to_agree_and_the_one_that_does_not_is_quoted(program: Program) -> None:
    program("exit 0", "10-fine")
    folder = program("printf 'no provenance\\033[31m\\n'; echo noise >&2; exit 3", "20-strict")
    refused(folder, r"app:v1@sha256:\w+ is refused by 20-strict: no provenance\[31m$")


def test_silence_is_told_by_its_exit_code(program: Program) -> None:
    refused(program("exit 9"), "refused by house: exit code 9")


def test_a_program_without_an_answer_is_killed_with_all_that_it_started(program: Program, tmp_path: Path) -> None:
    folder = program(f"sleep 100 & echo $! > {tmp_path}/child; wait")
    refused(folder, "no answer within 0.2 s", 0.2)
    child = int((tmp_path / "child").read_text())
    until = time.monotonic() + 5
    while os.path.exists(f"/proc/{child}") and "Z" not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < until


def test_a_child_that_holds_the_output_holds_up_nobody(program: Program) -> None:
    folder = program("sleep 100 & echo fine")
    began = time.monotonic()
    assert Verifiers(folder, 50.0).check(IMAGE, TARGET, None, NEVER)
    assert time.monotonic() - began < 20


def test_output_without_end_is_cut(program: Program) -> None:
    refused(program("yes no | head -c 1000000; exit 1"), "refused by house: (no){1,250}$")


def test_the_callers_deadline_counts(program: Program) -> None:
    folder = program("sleep 100")
    with pytest.raises(DeadlineExceeded, match="while house was asked"):
        Verifiers(folder, 50.0).check(IMAGE, TARGET, None, Deadline.after(0.2))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda folder: (folder / "house").unlink(), "it is empty"),
        (lambda folder: (folder / "notes").mkdir(), "notes is no program"),
        (lambda folder: (folder / "readme").write_text("x"), "readme is no program"),
        (lambda folder: (folder / "house").chmod(0o757), "house can be written by everybody"),
        (lambda folder: folder.chmod(0o777), "can be written by everybody"),
        (lambda folder: (folder / "house").rename(folder.parent / "house"), "it is empty"),
        (lambda folder: [(folder / f"{n}").symlink_to("house") for n in range(32)], "33 entries, more than 32"),
        (lambda folder: (folder / "house").write_bytes(b"\x7fELF"), "cannot be started: Exec format error"),
    ],
)
def test_a_directory_that_cannot_be_relied_on_refuses_every_image(
    program: Program, make: Callable[[Path], object], text: str
) -> None:
    folder = program("exit 0")
    make(folder)
    refused(folder, text)


def test_a_directory_that_is_not_there_refuses_every_image(tmp_path: Path) -> None:
    refused(tmp_path / "none", "none: No such file or directory")


def test_a_program_may_use_the_credentials_of_the_pull(program: Program, tmp_path: Path) -> None:
    folder = program(f'cat "$REGISTRY_AUTH_FILE" > {tmp_path}/auth')
    document = auth_document("acme.example", Credentials(username="bob", password="secret"))
    Verifiers(folder, 10.0).check(IMAGE, TARGET, document, NEVER)
    assert json.loads((tmp_path / "auth").read_text()) == {"auths": {"acme.example": {"auth": "Ym9iOnNlY3JldA=="}}}


def test_credentials_are_written_as_tools_read_them() -> None:
    assert auth_document("acme.example", None) is None
    token = json.loads(auth_document("docker.io", Credentials(identity_token="t")) or b"")
    entry = {"identitytoken": "t"}
    assert token == {"auths": {"docker.io": entry, "https://index.docker.io/v1/": entry}}


def test_what_is_forgeoneds_own_is_not_handed_down(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/it")
    monkeypatch.setenv("FORGEONE_CONFIG", "/it")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    Verifiers(program(f"env > {tmp_path}/env"), 10.0).check(IMAGE, TARGET, None, NEVER)
    text = (tmp_path / "env").read_text()
    assert "HTTPS_PROXY=http://proxy" in text
    assert not {"NOTIFY_SOCKET", "FORGEONE_CONFIG"} & {line.partition("=")[0] for line in text.splitlines()}


def test_programs_judge_what_the_name_stands_for_at_the_pull_and_again_after_a_reload(
    node: Node, registry: FakeRegistry, contents: Contents, program: Program, tmp_path: Path
) -> None:
    folder = program(f"cat >> {tmp_path}/asked; echo >> {tmp_path}/asked; test ! -e {tmp_path}/refuse")
    config = SignaturesConfig(verifiers_dir=str(folder))
    node.images.reconfigure(node.config, [], signatures=config)
    entry = {**contents.add_image(), "platform": {"os": "linux", "architecture": "amd64"}}
    index = contents.add_index("v1", entries=[entry])
    name = f"{registry.host}/app:v1"
    (tmp_path / "refuse").touch()
    with pytest.raises(UntrustedImage, match="refused by house"):
        node.images.pull(name, None, NEVER)
    assert node.left_over() == []
    (tmp_path / "refuse").unlink()
    image = node.images.pull(name, None, NEVER)
    assert [json.loads(line)["digest"] for line in (tmp_path / "asked").read_text().split()] == [index["digest"]] * 2
    (tmp_path / "refuse").touch()
    assert node.images.endorsement(image, name, "", NEVER).signers == ("verifier:house",)
    assert node.images.reconfigure(node.config, [], signatures=config) == ()
    with pytest.raises(UntrustedImage, match="refused by house"):
        node.images.endorsement(image, name, "", NEVER)
    assert [json.loads(line)["digest"] for line in (tmp_path / "asked").read_text().split()] == [index["digest"]] * 3
