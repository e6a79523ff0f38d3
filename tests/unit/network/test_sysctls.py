from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.errors import InvalidInput
from forgeone_shim.kernel.namespaces import plan_sysctls

ALL = ("net", "uts", "ipc")


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "/proc/sys/net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.1/forwarding", "/proc/sys/net/ipv4/conf/eth0.1/forwarding"),
        ("net.ipv4.conf.eth0/1.forwarding", "/proc/sys/net/ipv4/conf/eth0.1/forwarding"),
        ("kernel.shm_rmid_forced", "/proc/sys/kernel/shm_rmid_forced"),
        ("kernel.msgmax", "/proc/sys/kernel/msgmax"),
        ("kernel/sem", "/proc/sys/kernel/sem"),
        ("fs.mqueue.msg_max", "/proc/sys/fs/mqueue/msg_max"),
    ],
)
def test_namespaced_parameters_pass_in_both_spellings(key: str, path: str) -> None:
    (planned,) = plan_sysctls({key: "1"}, ALL)
    assert (planned.key, planned.path, planned.value) == (key, path, "1")


@pytest.mark.parametrize(
    "key",
    [
        "",
        ".",
        "net",
        "net.",
        "net..ipv4",
        "kernel.panic",
        "kernel.hostname",
        "kernel.shm.x",
        "kernel.semx",
        "vm.swappiness",
        "fs.file-max",
        "fs.mqueue",
        "net/../kernel/panic",
        "net.ipv4.../kernel",
        "net/ipv4/..",
        "net.ipv4.//x",
        "/net/ipv4/ip_forward",
        "net.ipv4.ip forward",
        "net.ipv4.x\0",
    ],
)
def test_everything_else_is_refused_by_name(key: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        plan_sysctls({key: "1"}, ALL)
    assert repr(key) in str(raised.value)


@pytest.mark.parametrize(("key", "kinds"), [("net.ipv4.ip_forward", ("uts", "ipc")), ("kernel.sem", ("net", "uts"))])
def test_a_parameter_needs_the_pods_own_namespace(key: str, kinds: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match="but the pod uses the host's"):
        plan_sysctls({key: "1"}, kinds)


@pytest.mark.parametrize("value", ["1\n2", "a\0", "x" * 5000])
def test_a_value_is_one_short_line(value: str) -> None:
    with pytest.raises(InvalidInput):
        plan_sysctls({"net.ipv4.ip_forward": value}, ALL)


@given(st.text(max_size=40))
def test_no_key_leaves_the_allowed_folders(key: str) -> None:
    try:
        (planned,) = plan_sysctls({key: "1"}, ALL)
    except InvalidInput:
        return
    assert planned.path.startswith(("/proc/sys/net/", "/proc/sys/kernel/", "/proc/sys/fs/mqueue/"))
    assert not {"", ".", ".."} & set(planned.path.split("/")[1:])
