"""What a guest says of itself is told to a kubelet only as far as a kernel could have said it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.api import runtime_pb2 as pb
from cri.translate import stats
from engines.base import Measured
from engines.microvm.measuring import measured, measurement
from engines.microvm.wire.messages import File, Stats
from forgeone_shim.metrics import guests, samples
from forgeone_shim.metrics.meter import ContainerReading
from forgeone_shim.runtime.views import FilesystemUsage
from tests.unit.metrics.test_meter import container

HONEST = {
    "cpu.stat": "usage_usec 7\nuser_usec 5\nsystem_usec 2\nnr_periods 0\n",
    "memory.current": "4096\n",
    "memory.stat": "anon 1024\ninactive_file 1000\npgfault 3\n",
    "memory.max": "max\n",
    "cpu.pressure": "some avg10=0.00 avg60=1.50 avg300=100.00 total=9\n",
    "io.stat": "8:0 rbytes=512 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n",
    "pids.current": "4\n",
}


def told(files: dict[str, bytes], number: int = 2) -> Stats:
    return Stats(
        container="a",
        files=tuple(File(name=name, content=content) for name, content in files.items()),
        processes=number,
        layer_bytes=number,
        layer_inodes=number,
        state="running",
    )


def test_what_a_kernel_says_is_told_as_it_is() -> None:
    found = measured(told({name: content.encode() for name, content in HONEST.items()}))
    assert found.files == {name: content.rstrip("\n") for name, content in HONEST.items()}
    usage = guests.usage(1, found)
    assert (usage.cpu, usage.memory, usage.working_set) == (7000, 4096, 3096)
    assert usage.cpu_stall is not None
    assert usage.cpu_stall.some.avg300 == 100.0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cpu.stat", b"usage_usec -7\n"),
        ("cpu.stat", b"usage_usec 99999999999999999999999\n"),
        ("memory.current", b"9007199254740992"),
        ("memory.current", b"max"),
        ("memory.current", b"1\n2"),
        ("cpu.pressure", b"some avg10=nan avg60=0.00 avg300=0.00 total=1"),
        ("cpu.pressure", b"some total=1"),
        ("io.stat", b"8:0 rbytes"),
        ("io.stat", "8:0 rbytes=\N{SUPERSCRIPT TWO}".encode()),
        ("shadow", b"root"),
    ],
)
def test_what_no_kernel_says_is_not_told(name: str, content: bytes) -> None:
    assert measured(told({name: content})).files == {}


def test_what_the_agent_counts_itself_is_told_beside_the_files() -> None:
    own = b"descriptors 7\nsockets 2\nlayer_size 4096\nlayer_inodes -1\nopen_files 99999999999999999999\nother 1\n"
    found = measured(told({"forgeone.stat": own}))
    assert (found.descriptors, found.sockets, found.layer_size) == (7, 2, 4096)
    assert (found.open_files, found.layer_inodes_total, found.layer_inodes_free, found.files) == (None, None, None, {})
    names = [one.name for one in samples.of_measured(found, "/dev/vda")]
    assert names == [
        "container_processes",
        "container_file_descriptors",
        "container_sockets",
        "container_fs_usage_bytes",
        "container_fs_limit_bytes",
    ]


def test_only_what_was_asked_for_is_told() -> None:
    other = Stats(container="b", state="running")
    found = measurement("/vm", [told({}), other], {"a"})
    assert (found.cgroup, list(found.containers)) == ("/vm", ["a"])


_WORDS = st.sampled_from(
    ["some", "full", "avg10=1.00", "total=5", "usage_usec", "8:0", "rbytes=1", "max", "1", "\n", " "]
)
_TEXTS = st.lists(_WORDS, max_size=20).map(lambda words: " ".join(words).encode())


@given(
    st.dictionaries(st.sampled_from([*sorted(HONEST), "forgeone.stat"]), st.one_of(st.binary(max_size=60), _TEXTS)),
    st.integers(0, 2**64 - 1),
)
def test_whatever_a_guest_says_a_kubelet_gets_its_answer(files: dict[str, bytes], number: int) -> None:
    found: Measured = measured(told(files, number))
    usage, view = guests.usage(1, found), container("a", "p", "/x")
    layer = FilesystemUsage("/", found.layer_bytes, found.layer_inodes, 1)
    assert isinstance(stats.container(ContainerReading(view, usage, None, layer)), pb.ContainerStats)
    assert all(0 <= one.value < 2**63 for one in samples.of_usage(usage))
    assert all(0 <= one.value < 2**63 for one in samples.of_v2(guests.reader(found), (), str))
    assert all(0 <= one.value < 2**63 for one in samples.of_measured(found, ""))
