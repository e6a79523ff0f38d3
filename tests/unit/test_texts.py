from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim import texts
from forgeone_shim.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "soft", "hard"),
    [
        ("nofile=1024:2048", 1024, 2048),
        ("nofile=1024", 1024, 1024),
        ("nofile=0:-1", 0, texts.UNLIMITED),
        ("nofile=-1", texts.UNLIMITED, texts.UNLIMITED),
    ],
)
def test_a_limit_is_soft_and_hard_or_both(text: str, soft: int, hard: int) -> None:
    found = texts.ulimit("f", text)
    assert (found.kind, found.soft, found.hard) == ("RLIMIT_NOFILE", soft, hard)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nofile",
        "nofile=",
        "nofile=a",
        "nofile=2:1",
        "nofile=-1:5",
        "nofile=1:",
        "nofile=1:2:3",
        "nofile=-2",
        "files=1",
        "NOFILE=1",
        "nofile= 1",
        "nofile=1_0",
        "nofile=99999999999999999999",
        "nofile=٣",
    ],
)
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        texts.ulimit("f", text)


@pytest.mark.parametrize(
    ("text", "source", "destination", "permissions"),
    [
        ("/dev/a", "/dev/a", "/dev/a", "rwm"),
        ("/dev/a:r", "/dev/a", "/dev/a", "r"),
        ("/dev/a:/dev/b", "/dev/a", "/dev/b", "rwm"),
        ("/dev/a:/dev/b:rw", "/dev/a", "/dev/b", "rw"),
        ("//dev//a", "/dev/a", "/dev/a", "rwm"),
    ],
)
def test_a_device_is_a_path_or_two_and_what_may_be_done(
    text: str, source: str, destination: str, permissions: str
) -> None:
    assert texts.device("f", text) == texts.Device(source, destination, permissions)


@pytest.mark.parametrize(
    "text", ["", "dev/a", "/dev/a:", "/dev/a:x", "/dev/a:rr", "/dev/a:/b:/c", "/dev/../a", "/dev/a:rw:r", "/a\0"]
)
def test_a_device_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        texts.device("f", text)


def test_a_mount_is_two_paths_and_whether_it_can_be_written_to() -> None:
    assert texts.mount("f", "/a:/b") == texts.Mount("/a", "/b", readonly=False)
    assert texts.mount("f", "/a:/b/:ro") == texts.Mount("/a", "/b", readonly=True)


@pytest.mark.parametrize("text", ["", "/a", "a:/b", "/a:b", "/a:/b:rx", "/a:/b:ro:ro", "/a:/", "/a:/../b"])
def test_a_mount_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        texts.mount("f", text)


def test_parameters_are_those_that_a_pod_has_of_its_own() -> None:
    given_texts = ("net.core.somaxconn=1", "kernel.shmmax=2", "fs.mqueue.msg_max=3", "net.ipv4.x=a=b")
    assert texts.parameters("f", given_texts) == {
        "net.core.somaxconn": "1",
        "kernel.shmmax": "2",
        "fs.mqueue.msg_max": "3",
        "net.ipv4.x": "a=b",
    }


@pytest.mark.parametrize("bad", [["kernel.panic=1"], ["vm.swappiness"], ["net.a=1", "net.a=2"], ["=1"], [" net.a=1"]])
def test_parameters_of_the_host_are_refused(bad: list[str]) -> None:
    with pytest.raises(InvalidInput):
        texts.parameters("f", bad)


@given(st.text(max_size=20), st.sampled_from([texts.ulimit, texts.device, texts.mount, texts.variable]))
def test_no_text_is_worse_than_refused(text: str, read: object) -> None:
    try:
        assert callable(read)
        read("f", text)
    except InvalidInput as error:
        assert error.field == "f"
