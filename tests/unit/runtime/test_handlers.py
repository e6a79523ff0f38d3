"""Which handler a pod gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from engines.base import Engine, HandlerSettings
from forgeone_shim.config.handlers import Handler
from forgeone_shim.errors import InvalidInput
from forgeone_shim.runtime.handlers import Handlers

ORDER = ("native", "wasm", "microvm")


class Picky:
    """The one thing of an engine that handlers ask."""

    def check(self, settings: HandlerSettings) -> None:
        if settings.seccomp == "bad":
            raise InvalidInput("seccomp_profile", "is not one")


def made(engines: Sequence[str], files: Sequence[Handler] = ()) -> Handlers:
    return Handlers({name: cast(Engine, Picky()) for name in engines}, files)


def test_each_engine_has_one_and_the_native_one_is_the_default() -> None:
    handlers = made(["wasm", "native"])
    assert [one.name for one in handlers.all()] == ["", "forgeone-auto", "forgeone-native", "forgeone-wasm"]
    assert handlers.find("").engine == "native"
    assert handlers.find("forgeone-wasm").engine == "wasm"


def test_the_names_of_an_engines_handlers_are_known_for_advice() -> None:
    handlers = made(["wasm", "native"], [Handler(name="spin", engine="wasm")])
    assert handlers.of("wasm") == ("forgeone-wasm", "spin")
    assert handlers.of("native") == ("forgeone-native",)
    assert handlers.of("microvm") == ()


def test_without_the_native_engine_there_is_no_default() -> None:
    with pytest.raises(InvalidInput, match="there is no handler ''"):
        made(["wasm"]).find("")


def test_files_add_handlers_and_a_reload_takes_them_away() -> None:
    handlers = made(["native"], [Handler(name="gpu", cni_conf_dir="/x")])
    assert handlers.find("gpu").cni_conf_dir == "/x"
    handlers.plan([], ORDER)()
    with pytest.raises(InvalidInput, match=r"no handler 'gpu' \(one of: forgeone-auto, forgeone-native\)"):
        handlers.find("gpu")


def test_a_handler_of_an_engine_that_is_not_installed_is_refused_and_nothing_changes() -> None:
    handlers = made(["native"], [Handler(name="gpu")])
    with pytest.raises(InvalidInput, match="handler sand: engine: no engine 'wasm'"):
        handlers.plan([Handler(name="other"), Handler(name="sand", engine="wasm")], ORDER)
    assert [one.name for one in handlers.all()] == ["", "forgeone-auto", "forgeone-native", "gpu"]


def test_what_an_engine_cannot_do_is_refused_in_its_words() -> None:
    with pytest.raises(InvalidInput, match="handler gpu: seccomp_profile: is not one"):
        made(["native"], [Handler(name="gpu", seccomp="bad")])


def test_a_file_may_leave_the_engine_open_for_what_every_engine_of_the_order_can_do() -> None:
    class Plain(Picky):
        def check(self, settings: HandlerSettings) -> None:
            if settings.seccomp:
                raise InvalidInput("seccomp_profile", "has one of its own")

    engines = {"native": cast(Engine, Picky()), "wasm": cast(Engine, Plain())}
    file = Handler(name="any", engine="auto", seccomp="a profile")
    assert Handlers(engines, [file], ["native"]).find("any").chooses
    with pytest.raises(InvalidInput, match="handler any: seccomp_profile: has one of its own"):
        Handlers(engines, [file], ["native", "wasm"])


def test_no_engine_may_have_the_name_that_leaves_it_open() -> None:
    with pytest.raises(InvalidInput, match="'auto' is installed"):
        made(["native", "auto"])


def test_a_slip_in_the_order_is_refused_and_an_engine_that_is_left_out_is_not() -> None:
    handlers = made(["native"])
    handlers.plan([], ("microvm", "native"))()
    with pytest.raises(InvalidInput, match=r"scheduler\.order: there is no engine 'microvn' \(one of: native\)"):
        handlers.plan([Handler(name="new")], ("microvn", "native"))
    assert [one.name for one in handlers.all()] == ["", "forgeone-auto", "forgeone-native"]
