"""Interpreters in pods, where ``python -m hack.guests`` has made them: compiled at the pull, and jailed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cri.api import runtime_pb2 as pb
from hack.guests import find
from hack.lab.daemon import Daemon
from tests.e2e.conftest import Push
from tests.e2e.wasm_pods import WasmPod, image, pull

pytestmark = pytest.mark.root

SCRIPT = "import os,sys; print(sys.platform, sorted(os.listdir('/')), os.getcwd()); sys.exit(42)"
JUNK = "x = [bytearray(1 << 20) for _ in range(2000)]"


@pytest.fixture
def pod(forgeoned: Daemon) -> Iterator[WasmPod]:
    pod = WasmPod.plan(forgeoned).run()
    yield pod
    pod.remove()


def pulled(forgeoned: Daemon, push: Push, name: str) -> str:
    found = find(name)
    if found is None:
        pytest.skip(f"needs {name}: python -m hack.guests")
    return pull(forgeoned, push(f"{name.partition('.')[0]}:latest", image({name: found.read_bytes()})))


def test_cpython_runs_as_nobody(forgeoned: Daemon, push: Push, pod: WasmPod) -> None:
    config = pod.container(pulled(forgeoned, push, "python.wasm"))
    config.args[:] = ["-c", SCRIPT]
    config.linux.security_context.run_as_user.value = 65534
    id_ = pod.start(config)
    assert pod.wait(id_).exit_code == 42
    assert pod.log(id_).startswith("wasi [")
    assert "'proc'" not in pod.log(id_)


def test_cpython_is_told_of_its_limit(forgeoned: Daemon, push: Push, pod: WasmPod) -> None:
    config = pod.container(pulled(forgeoned, push, "python.wasm"))
    config.args[:] = ["-c", JUNK]
    config.linux.resources.memory_limit_in_bytes = 256 << 20
    id_ = pod.start(config)
    status = pod.wait(id_)
    # Whichever of the two limits it meets first.
    assert status.reason == "OOMKilled" or (status.exit_code == 1 and "MemoryError" in pod.log(id_))


def test_quickjs_runs(forgeoned: Daemon, push: Push, pod: WasmPod) -> None:
    config = pod.container(pulled(forgeoned, push, "quickjs.wasm"))
    config.args[:] = ["-e", "console.log([1, 2].map((x) => x * 21).join())"]
    id_ = pod.start(config)
    assert pod.wait(id_).exit_code == 0
    assert pod.log(id_) == "21,42\n"


def test_a_component_of_cpython_starts_at_once(forgeoned: Daemon, push: Push, pod: WasmPod) -> None:
    config = pod.container(pulled(forgeoned, push, "app.component.wasm"))
    before = time.monotonic()
    id_ = pod.start(config)
    assert pod.wait(id_).exit_code == 0
    assert time.monotonic() - before < 5
    assert pod.log(id_) == "hello from cpython nobody\n"


@pytest.mark.parametrize("language", ["go", "rust"])
def test_what_a_compiler_of_a_language_makes_runs(
    forgeoned: Daemon, push: Push, pod: WasmPod, tmp_path: Path, language: str
) -> None:
    name = pulled(forgeoned, push, f"{language}.wasm")

    def ended(*words: str) -> tuple[int, str]:
        config = pod.container(name, name=words[0])
        config.args[:] = words
        config.envs.append(pb.KeyValue(key="WHO", value=b"me"))
        config.mounts.add(host_path=str(tmp_path), container_path="/data")
        id_ = pod.start(config)
        return pod.wait(id_).exit_code, pod.log(id_)

    assert ended("hello") == (0, f"hello from {language} me\n")
    assert ended("exit", "7") == (7, "")
    assert ended("sum") == (0, "7999998000000\n")
    assert ended("write", "/data/file", "text") == (0, "")
    assert (tmp_path / "file").read_text() == "text"
    code, log = ended("what")
    assert code == (2 if language == "go" else 134)
    assert "what is what?" in log


def test_the_example_in_rust_knows_itself(forgeoned: Daemon, push: Push, pod: WasmPod) -> None:
    config = pod.container(pulled(forgeoned, push, "abi.rust.wasm"))
    id_ = pod.start(config)
    assert pod.wait(id_).exit_code == 0
    written = json.loads(pod.log(id_))
    assert (written["level"], written["context"]) == ("info", "example")
    assert written["message"] == f"container {id_[:12]} is running"
