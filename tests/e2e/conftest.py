"""End to end: a registry, images and a forgeoned of the test's own, and the proof that nothing of it is left.

========================  ==========================================================================================
``registry``              Debian's docker-registry on a free loopback port (whole session)
``push``                  ``push("name:tag", image) -> "127.0.0.1:port/name:tag"``; images from :mod:`hack.lab.images`
``busybox``               reference of a pushed busybox image (whole session)
``forgeoned``             a running daemon (whole module), emptied and checked for leaks at the module's end
``fresh_forgeoned``       the same for one test, which may kill it
``nothing_left``          checks the module's daemon for leaks after one test
``machines``              one for pods in virtual machines (whole session), emptied and checked at each module's end
``daemon_factory``        more daemons, ``daemon_factory({"native.log_rate": 65536})``; each is closed and checked
========================  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cri.api import runtime_pb2 as pb
from hack.lab import images
from hack.lab.daemon import Daemon
from hack.lab.registry import Registry
from hack.lab.settings import patient
from tests.e2e import microvm_pods

Push = Callable[[str, images.BuiltImage], str]


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def push(registry: Registry) -> Push:
    return lambda name, image: images.push(registry.address, name, image)


@pytest.fixture(scope="session")
def busybox(push: Push) -> str:
    return push("busybox:latest", images.busybox())


@contextmanager
def running_daemon(registry: Registry, settings: Mapping[str, object] | None = None) -> Iterator[Daemon]:
    """A daemon whose pods are removed at the end, and of which nothing may be left then."""
    daemon = Daemon([registry.address], settings=settings)
    try:
        yield daemon.start()
        if not daemon.running:
            daemon.start()
        daemon.remove_pods()
        left = daemon.left()
        assert not left, "left after every pod was removed:\n" + "\n".join(left)
        assert daemon.stop() == 0
        left = daemon.left()
        assert not left, "left after forgeoned stopped:\n" + "\n".join(left)
    except BaseException as error:
        error.add_note(f"--- the end of forgeoned's log\n{_tail(daemon.log)}")
        raise
    finally:
        daemon.close()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-6000:] if log.exists() else ""


@pytest.fixture(scope="module")
def forgeoned(registry: Registry) -> Iterator[Daemon]:
    with running_daemon(registry) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def _machines(registry: Registry, busybox: str) -> Iterator[Daemon]:
    why = microvm_pods.missing()
    if why:
        pytest.skip(why)
    with running_daemon(registry, microvm_pods.machines()) as daemon:
        request = pb.PullImageRequest(image=pb.ImageSpec(image=busybox, runtime_handler=microvm_pods.HANDLER))
        daemon.images.PullImage(request, timeout=patient(60))
        yield daemon


@pytest.fixture(scope="module")
def machines(_machines: Daemon) -> Iterator[Daemon]:
    """Its templates are made once."""
    yield _machines
    if not _machines.running:
        _machines.start()
    _machines.remove_pods()
    left = _machines.left()
    assert not left, "left after every pod was removed:\n" + "\n".join(left)


@pytest.fixture
def fresh_forgeoned(registry: Registry) -> Iterator[Daemon]:
    with running_daemon(registry) as daemon:
        yield daemon


@pytest.fixture
def nothing_left(forgeoned: Daemon) -> Iterator[None]:
    """Compares what the daemon has on the host before and after the test."""
    before = forgeoned.left()
    yield
    assert forgeoned.left(expected=before) == before


@pytest.fixture
def daemon_factory(registry: Registry) -> Iterator[Callable[..., Daemon]]:
    with ExitStack() as stack:
        yield lambda settings=None: stack.enter_context(running_daemon(registry, settings))
