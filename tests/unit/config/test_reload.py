from __future__ import annotations

from pathlib import Path

import pytest

from forgeone_shim.config.loader import keys, load
from forgeone_shim.config.model import Config, GrpcConfig, LogConfig, NetworkConfig, RegistryConfig
from forgeone_shim.config.reload import LIVE, Reloader, plan
from forgeone_shim.errors import InternalError, InvalidInput


def test_live_keys_change_and_the_others_wait_and_are_named() -> None:
    running = Config()
    asked = Config(
        pinned_images=("pause*",),
        log=LogConfig(level="debug", format="console"),
        registry=RegistryConfig(keep_blobs=True),
        grpc=GrpcConfig(threads=3),
        network=NetworkConfig(bridge="other0"),
    )
    outcome = plan(running, asked)
    assert outcome.changed == ("pinned_images", "log.level", "log.format", "registry.keep_blobs")
    assert outcome.restart == ("grpc.threads", "network.bridge")
    assert outcome.config == Config(
        pinned_images=("pause*",),
        log=LogConfig(level="debug", format="console"),
        registry=RegistryConfig(keep_blobs=True),
    )


def test_what_waits_is_named_again_and_what_has_changed_is_not() -> None:
    asked = Config(pinned_images=("a",), grpc=GrpcConfig(threads=7))
    again = plan(plan(Config(), asked).config, asked)
    assert (again.changed, again.restart) == ((), ("grpc.threads",))


def test_every_live_key_exists() -> None:
    assert all(any(key.path.startswith(name) for key in keys()) for name in LIVE)


def test_a_bad_file_is_refused_whole_and_the_old_configuration_stays(tmp_path: Path) -> None:
    file, applied = tmp_path / "config.toml", list[Config]()
    file.write_text('pinned_images = ["a"]\n[log]\nlevel = "loud"\n')

    def apply(config: Config) -> tuple[str, ...]:
        applied.append(config)
        return ()

    reloader = Reloader(Config(), lambda: load(["--config", str(file)], {}), apply)
    with pytest.raises(InvalidInput, match=r"log\.level: 'loud'"):
        reloader.reload()
    assert applied == []
    file.write_text('pinned_images = ["a"]\n')
    assert reloader.reload().changed == ("pinned_images",)
    assert reloader.reload().changed == ()
    assert applied == [Config(pinned_images=("a",))] * 2


def test_what_cannot_be_applied_is_tried_again_by_the_next_reload() -> None:
    refuse = [True]

    def apply(_: Config) -> tuple[str, ...]:
        if refuse:
            refuse.pop()
            raise InternalError("no")
        return ("handler gpu",)

    reloader = Reloader(Config(), lambda: Config(pinned_images=("a",)), apply)
    with pytest.raises(InternalError):
        reloader.reload()
    assert reloader.reload().changed == ("pinned_images", "handler gpu")
