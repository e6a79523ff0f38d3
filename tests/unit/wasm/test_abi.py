"""ForgeOne's own interface: the same answers for a core module and a component, and the files that declare it."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.base import Step, Trust
from engines.wasm import card
from engines.wasm.card import Card, Identity, Limits
from engines.wasm.guest import abi as guest
from engines.wasm.guest.http.interfaces import SERVER
from engines.wasm.guest.http.linking import Interfaces, link
from engines.wasm.guest.loading import LoadedComponent
from engines.wasm.guest.plan import GuestPlan
from engines.wasm.guest.running import prepare
from engines.wasm.tracing.calls import CALLS
from forgeone_shim import abi
from forgeone_shim.errors import InvalidInput
from hack.guests import compile_c
from hack.lab import http_guest
from tests.unit.wasm.guests import Guests, Ran

ID = "c0ffee" * 10 + "0000"
STEP = Step(7, "created", "boot", "booted")
TRUST = Trust(fingerprint="sha256:" + "ab" * 32, entropy=256, score=77)
CARD = Card("created", Limits(memory=1 << 30, cpu_quota=5, cpu_period=10), trust=TRUST)

# Each function calls one import; what it wrote follows on standard output, 64 bytes of it.
MODULE = """(module
  (import "forgeone:introspect@1" "identity" (func $identity (param i32 i32 i32) (result i32)))
  (import "forgeone:introspect@1" "state" (func $state (result i32)))
  (import "forgeone:introspect@1" "limits" (func $limits (param i32 i32) (result i32)))
  (import "forgeone:introspect@1" "usage" (func $usage (param i32 i32) (result i32)))
  (import "forgeone:introspect@1" "history" (func $history (param i32 i32) (result i32)))
  (import "forgeone:introspect@1" "trust" (func $trust (param i32 i32) (result i32)))
  (import "forgeone:log@1" "write" (func $log (param i32 i32 i32 i32 i32) (result i32)))
  (import "forgeone:yield@1" "give_up" (func $yield (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "\\40\\00\\00\\00\\40\\00\\00\\00")
  (data (i32.const 16) "two\\0alines\\ff")
  (func $show (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "identity") (param i32 i32 i32) (result i32)
    (call $identity (local.get 0) (local.get 1) (local.get 2)) (call $show))
  (func (export "state") (result i32) (call $state))
  (func (export "limits") (param i32) (result i32) (call $limits (i32.const 64) (local.get 0)) (call $show))
  (func (export "usage") (param i32) (result i32) (call $usage (i32.const 64) (local.get 0)) (call $show))
  (func (export "history") (param i32) (result i32) (call $history (i32.const 64) (local.get 0)) (call $show))
  (func (export "trust") (param i32 i32) (result i32) (call $trust (local.get 0) (local.get 1)) (call $show))
  (func (export "log") (param i32 i32 i32) (result i32)
    (call $log (local.get 0) (i32.const 16) (i32.const 3) (local.get 1) (local.get 2)))
  (func (export "yield") (result i32) (call $yield)))"""

COMPONENT = """(component
  (import "forgeone:introspect/container@1.0.0" (instance $c
    (type $e-state (enum "created" "booted" "running" "paused" "stopping" "terminated"))
    (export "state" (type $state (eq $e-state)))
    (type $e-event (enum "boot" "start" "pause" "resume" "stop" "exit"))
    (export "event" (type $event (eq $e-event)))
    (type $r-step (record (field "at" u64) (field "before" $state) (field "event" $event) (field "after" $state)))
    (export "transition" (type $step (eq $r-step)))
    (type $r-identity (record (field "id" string) (field "name" string) (field "pod-id" string)))
    (export "identity" (type $identity (eq $r-identity)))
    (type $r-limits (record (field "memory" (option u64)) (field "linear-memory" (option u64))
      (field "cpu-quota" (option u64)) (field "cpu-period" (option u64)) (field "cpu-shares" (option u64))
      (field "cpu-budget" (option u64))))
    (export "limits" (type $limits (eq $r-limits)))
    (type $r-usage (record (field "cpu-user" u64) (field "cpu-system" u64) (field "resident-peak" u64)))
    (export "usage" (type $usage (eq $r-usage)))
    (export "identify" (func (result $identity)))
    (export "get-state" (func (result $state)))
    (export "get-limits" (func (result $limits)))
    (export "get-usage" (func (result $usage)))
    (export "history" (func (result (list $step))))))
  (import "forgeone:log/log@1.0.0" (instance $log
    (type $e-level (enum "trace" "debug" "info" "warn" "error" "critical"))
    (export "level" (type $level (eq $e-level)))
    (export "log" (func (param "level" $level) (param "context" string) (param "message" string)))))
  (import "forgeone:yield/slice@1.0.0" (instance $yield (export "give-up" (func))))
  (core module $memory
    (memory (export "memory") 1)
    (data (i32.const 16) "two\\0alines")
    (global $top (mut i32) (i32.const 1024))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.set $top (i32.and (i32.add (global.get $top) (i32.const 15)) (i32.const -16)))
      (global.get $top)
      (global.set $top (i32.add (global.get $top) (local.get 3)))))
  (core instance $mem (instantiate $memory))
  (alias core export $mem "memory" (core memory $m))
  (alias core export $mem "realloc" (core func $realloc))
  (core func $identify (canon lower (func $c "identify") (memory $m) (realloc (core func $realloc))))
  (core func $get-state (canon lower (func $c "get-state")))
  (core func $get-limits (canon lower (func $c "get-limits") (memory $m)))
  (core func $get-usage (canon lower (func $c "get-usage") (memory $m)))
  (core func $history (canon lower (func $c "history") (memory $m) (realloc (core func $realloc))))
  (core func $write (canon lower (func $log "log") (memory $m)))
  (core func $give-up (canon lower (func $yield "give-up")))
  (core module $main
    (import "" "memory" (memory 1))
    (import "" "identify" (func $identify (param i32)))
    (import "" "get-state" (func $get-state (result i32)))
    (import "" "get-limits" (func $get-limits (param i32)))
    (import "" "get-usage" (func $get-usage (param i32)))
    (import "" "history" (func $history (param i32)))
    (import "" "write" (func $write (param i32 i32 i32 i32 i32)))
    (import "" "give-up" (func $give-up))
    (func (export "id") (result i32) (call $identify (i32.const 512)) (i32.const 512))
    (func (export "state") (result i32) (call $get-state))
    (func (export "memory-limit") (result i64) (call $get-limits (i32.const 512))
      (i64.load (i32.const 520)))
    (func (export "unlimited") (result i32) (call $get-limits (i32.const 512)) (i32.load8_u (i32.const 528)))
    (func (export "peak") (result i64) (call $get-usage (i32.const 512)) (i64.load (i32.const 528)))
    (func (export "first-step") (result i64) (call $history (i32.const 512)) (i64.load (i32.load (i32.const 512))))
    (func (export "log") (call $write (i32.const 3) (i32.const 16) (i32.const 3) (i32.const 16) (i32.const 9)))
    (func (export "yield") (call $give-up)))
  (core instance $i (instantiate $main (with "" (instance
    (export "memory" (memory $m))
    (export "identify" (func $identify))
    (export "get-state" (func $get-state))
    (export "get-limits" (func $get-limits))
    (export "get-usage" (func $get-usage))
    (export "history" (func $history))
    (export "write" (func $write))
    (export "give-up" (func $give-up))))))
  (func (export "id") (result string) (canon lift (core func $i "id") (memory $m)))
  (func (export "state") (result u32) (canon lift (core func $i "state")))
  (func (export "memory-limit") (result u64) (canon lift (core func $i "memory-limit")))
  (func (export "unlimited") (result u32) (canon lift (core func $i "unlimited")))
  (func (export "peak") (result u64) (canon lift (core func $i "peak")))
  (func (export "first-step") (result u64) (canon lift (core func $i "first-step")))
  (func (export "log") (canon lift (core func $i "log")))
  (func (export "yield") (canon lift (core func $i "yield"))))"""

# Of what 1.1 has besides.
NEWER = """(component
  (import "forgeone:introspect/container@1.1.0" (instance $c
    (type $r-trust (record (field "fingerprint" (option string)) (field "contract" (option string))
      (field "entropy" u32) (field "score" u32)))
    (export "trust" (type $trust (eq $r-trust)))
    (export "get-trust" (func (result $trust)))))
  (core module $memory
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
  (core instance $mem (instantiate $memory))
  (alias core export $mem "memory" (core memory $m))
  (alias core export $mem "realloc" (core func $realloc))
  (core func $get (canon lower (func $c "get-trust") (memory $m) (realloc (core func $realloc))))
  (core module $main
    (import "" "memory" (memory 1))
    (import "" "get" (func $get (param i32)))
    (func (export "fingerprint") (result i32) (call $get (i32.const 512)) (i32.const 516))
    (func (export "contract") (result i32) (call $get (i32.const 512)) (i32.load8_u (i32.const 524)))
    (func (export "entropy") (result i32) (call $get (i32.const 512)) (i32.load (i32.const 536)))
    (func (export "score") (result i32) (call $get (i32.const 512)) (i32.load (i32.const 540))))
  (core instance $i (instantiate $main (with "" (instance
    (export "memory" (memory $m)) (export "get" (func $get))))))
  (func (export "fingerprint") (result string) (canon lift (core func $i "fingerprint") (memory $m)))
  (func (export "contract") (result u32) (canon lift (core func $i "contract")))
  (func (export "entropy") (result u32) (canon lift (core func $i "entropy")))
  (func (export "score") (result u32) (canon lift (core func $i "score"))))"""

Call = Callable[..., Ran]


@pytest.fixture
def call(guests: Guests, tmp_path: Path) -> Call:
    """``call(module, function, argument, ...)`` in a container of its own."""
    path = str(tmp_path / "card")
    view = card.create(path, CARD)
    card.take(path, STEP)
    made = guest.Interface(Identity(ID, "main", "d" * 64), view)

    def run(module: str | Path, function: str, *arguments: int) -> Ran:
        plan = GuestPlan(argv=("x", *map(str, arguments)), function=function)
        return guests.run(module, plan, extensions=[made])

    return run


def _said(ran: Ran, size: int = 64) -> tuple[bytes, int]:
    assert ran.code == 0, ran
    return ran.stdout[:size], int(ran.stdout[size:])


def test_a_module_learns_who_it_is(call: Call) -> None:
    assert _said(call(MODULE, "identity", 0, 64, 64)) == (ID.encode(), 64)
    assert _said(call(MODULE, "identity", 1, 64, 64)) == (b"main".ljust(64, b"\0"), 4)
    assert _said(call(MODULE, "identity", 2, 64, 8)) == (b"d" * 8 + bytes(56), 64), "cut off, and how much there is"
    assert _said(call(MODULE, "identity", 9, 64, 64))[1] == -abi.EINVAL
    for address in (-4, 2 * 65536 - 63):
        assert _said(call(MODULE, "identity", 0, address, 64))[1] == -abi.EFAULT
    assert _said(call(MODULE, "identity", 0, 64, -1))[1] == -abi.EFAULT


def test_a_module_learns_its_state_limits_usage_and_history(call: Call) -> None:
    assert _said(call(MODULE, "state"), 0)[1] == abi.STATES.index("booted")
    content, size = _said(call(MODULE, "limits", 64))
    assert size == abi.LIMITS.size
    assert abi.LIMITS.unpack_from(content) == (1 << 30, 0, 5, 10, 0, 0)
    assert _said(call(MODULE, "limits", 8)) == (struct.pack("<Q", 1 << 30).ljust(64, b"\0"), 48), "as it knows of it"
    content, size = _said(call(MODULE, "usage", 64))
    user, system, peak = abi.USAGE.unpack_from(content)
    assert 0 < user + system < 10**11
    assert 1 << 20 < peak < 1 << 34
    content, size = _said(call(MODULE, "history", 64))
    assert (size, abi.TRANSITION.unpack_from(content)) == (16, (7, 0, 0, 1))
    assert _said(call(MODULE, "yield"), 0)[1] == 0


def test_a_module_learns_how_it_is_known(call: Call) -> None:
    content, size = _said(call(MODULE, "trust", 64, 72))
    assert (size, content) == (abi.TRUST.size, b"\xab" * 32 + bytes(32))
    # From eight bytes before what is shown on.
    assert _said(call(MODULE, "trust", 56, 72))[0][-8:] == struct.pack("<II", 256, 77)


def test_a_line_of_the_log_is_one_line_whatever_is_in_it(call: Call) -> None:
    ran = call(MODULE, "log", 2, 16, 10)
    assert _said(ran, 0)[1] == 0
    assert ran.stderr.count(b"\n") == 1
    line = json.loads(ran.stderr)
    assert list(line) == ["time", "level", "context", "message"]
    assert (line["level"], line["context"], line["message"]) == ("info", "two", "two\nlines\ufffd")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", line["time"])
    assert _said(call(MODULE, "log", 6, 16, 1), 0)[1] == -abi.EINVAL
    assert _said(call(MODULE, "log", 2, -2, 4), 0)[1] == -abi.EFAULT


def test_the_example_in_c_builds_and_runs(call: Call, tmp_path: Path) -> None:
    header = abi.FILES["forgeone.h"]
    made = tmp_path / "hello.wasm"
    if not compile_c([header.parents[1] / "examples/c/hello.c"], made, f"-I{header.parent}"):
        pytest.skip("needs clang, lld, wasi-libc and libclang-rt-dev-wasm32")
    ran = call(made, "_start")
    assert ran.code == 0, ran
    assert ran.stdout.decode().splitlines() == [
        f"container {ID[:12]} is booted",
        f"memory limit: {1 << 30} bytes",
        "created -> booted",
    ]
    assert json.loads(ran.stderr)["message"] == "two lines\nin one"


def test_a_component_has_the_same(call: Call) -> None:
    for function, expected in (
        ("id", ID),
        ("state", "1"),
        ("memory-limit", str(1 << 30)),
        ("unlimited", "0"),
        ("first-step", "7"),
        ("yield", ""),
    ):
        ran = call(COMPONENT, function)
        assert (ran.code, ran.stdout.decode().strip()) == (0, expected), (function, ran)
    for function, expected in (
        ("fingerprint", TRUST.fingerprint),
        ("contract", "0"),
        ("entropy", "256"),
        ("score", "77"),
    ):
        ran = call(NEWER, function)
        assert (ran.code, ran.stdout.decode().strip()) == (0, expected), (function, ran)
    assert 1 << 20 < int(call(COMPONENT, "peak").stdout) < 1 << 34
    line = json.loads(call(COMPONENT, "log").stderr)
    assert (line["level"], line["context"], line["message"]) == ("warn", "two", "two\nlines")


def test_a_server_has_the_same(guests: Guests, tmp_path: Path) -> None:
    imports = COMPONENT[COMPONENT.index('(import "forgeone') : COMPONENT.index("(core module $memory")]
    text = http_guest.guest().replace("(component", "(component " + imports.replace("$c\n", "$introspect\n"), 1)
    loaded = guests.load(text)
    assert isinstance(loaded, LoadedComponent)
    own = guest.Interface(Identity(ID, "main", "pod"), card.create(str(tmp_path / "card"), CARD))
    functions = own.server_functions()
    linked = link(loaded.engine, loaded.component, Interfaces({**SERVER.functions, **functions}, SERVER.resources))
    assert [name for name in linked.missing if name.startswith("forgeone:")] == []
    assert functions["forgeone:introspect/container#identify"](None) == (ID, "main", "pod")
    assert functions["forgeone:introspect/container#get-trust"](None) == (TRUST.fingerprint, None, 256, 77)
    assert functions["forgeone:introspect/container#get-limits"](None) == (1 << 30, None, 5, 10, None, None)
    with pytest.raises(InvalidInput, match="imports forgeone:"):
        prepare(GuestPlan(argv=("x",)), loaded)


def test_a_function_that_this_version_has_not_is_told_when_the_guest_is_made_ready(call: Call) -> None:
    module = '(module (import "forgeone:yield@1" "later" (func)) (func (export "f")))'
    refused = "imports forgeone:yield@1 later, which version 1.1 of ForgeOne's interface does not have"
    assert refused in call(module, "f").refused
    newer = COMPONENT.replace("container@1.0.0", "container@1.2.0")
    assert "forgeone:introspect/container@1.2.0" in call(newer, "id").refused


def test_a_guest_that_imports_none_of_it_pays_nothing(guests: Guests) -> None:
    assert not guest.wanted(guests.load('(module (func (export "_start")))'))
    assert guest.wanted(guests.load(MODULE))
    assert guest.wanted(guests.load(COMPONENT))


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("forgeone:log@1", True),
        ("forgeone:log@2", False),
        ("forgeone:log/log@1.0.0", True),
        ("forgeone:log/log@1.0.7", True),
        ("forgeone:log/log@1.1.0", True),
        ("forgeone:log/log@1.2.0", False),
        ("forgeone:log/log@0.9.0", False),
        ("forgeone:log/log@2.0.0", False),
        ("forgeone:log/log", False),
        ("forgeone:bus/bus@1.0.0", False),
        ("wasi:cli/run@0.2.0", False),
    ],
)
def test_an_import_is_provided_in_the_versions_that_are_here(name: str, here: bool) -> None:
    assert guest.provided(name) is here


def test_what_a_package_requires_is_compared_with_the_version_here() -> None:
    assert abi.supports("1.0")
    assert abi.supports("1.1")
    assert not abi.supports("1.2")
    assert not abi.supports("2.0")
    assert not abi.supports("0.9")
    with pytest.raises(InvalidInput):
        abi.supports("1")


def test_the_wit_files_have_the_words_and_versions_of_the_code() -> None:
    text = {name: path.read_text() for name, path in abi.FILES.items()}
    version = ".".join(map(str, (*abi.VERSION, 0)))
    for name, interface in (
        ("introspect.wit", abi.INTROSPECT_INTERFACE),
        ("log.wit", abi.LOG_INTERFACE),
        ("yield.wit", abi.YIELD_INTERFACE),
    ):
        package, _, rest = interface.partition("/")
        assert f"package {package}@{version};" in text[name]
        assert f"interface {rest.partition('@')[0]} {{" in text[name]
    for name, words in (("state", abi.STATES), ("event", abi.EVENTS)):
        assert f"enum {name} {{ {', '.join(words)} }}" in text["introspect.wit"]
    assert f"enum level {{ {', '.join(abi.LEVELS)} }}" in text["log.wit"]


def test_the_header_declares_every_function_and_its_structures_are_as_large_as_they_are(tmp_path: Path) -> None:
    header = abi.FILES["forgeone.h"].read_text()
    declared = set(re.findall(r'FORGEONE_IMPORT\("(forgeone:[^"]+)", "([^"]+)"\)', header))
    assert declared == {key for key in CALLS if key[0].startswith("forgeone:")}
    numbers = dict(re.findall(r"FORGEONE_(\w+) = (\d+)", header))
    for words in (abi.STATES, abi.EVENTS, abi.LEVELS, abi.IDENTITY):
        assert [numbers[word.upper().replace("-", "_")] for word in words] == [str(at) for at in range(len(words))]
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    source = tmp_path / "sizes.c"
    sizes = {
        "limits": abi.LIMITS.size,
        "usage": abi.USAGE.size,
        "transition": abi.TRANSITION.size,
        "trust": abi.TRUST.size,
    }
    checks = "".join(f'_Static_assert(sizeof(struct forgeone_{name}) == {size}, "");' for name, size in sizes.items())
    source.write_text(f"#include <forgeone.h>\n{checks}")
    where = str(abi.FILES["forgeone.h"].parent)
    subprocess.run(["cc", "-fsyntax-only", "-w", "-I", where, str(source)], check=True)
