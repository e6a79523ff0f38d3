from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.wasm import messages
from engines.wasm.aot.target import Kind, Variant
from engines.wasm.jail.plan import JailPlan
from engines.wasm.messages import Code, Container, Create, Done, Ended, Executing, Forget, Init, Preload
from forgeone_shim.shim.supervision import Failed, Launched
from forgeone_shim.shim.wire import ProtocolError

CODE = Code("k", Kind.COMPONENT, Variant.METERED)
JAIL = JailPlan(rootfs="/r", uid=1, gid=2, filters=())


@pytest.mark.parametrize(
    "request_",
    [
        Create(code=CODE, plan=msgspec.Raw(b"{}")),
        Preload(code=CODE),
        Forget(keep=frozenset({"a", "b"})),
        Init(sandbox_id="s", plan=msgspec.Raw(messages.encode(JAIL))),
    ],
)
def test_a_request_is_read_as_it_was_said(request_: messages.Request) -> None:
    found = messages.decode_request(messages.encode(request_))
    assert type(found) is type(request_)
    assert messages.encode(found) == messages.encode(request_)


@pytest.mark.parametrize(
    "answer", [Done(), Executing(), Ended(code=7), Launched(pid=3), Failed(step="s", error="internal", message="m")]
)
def test_an_answer_is_read_as_it_was_said(answer: messages.Answer) -> None:
    assert messages.decode_answer(messages.encode(answer)) == answer


def test_a_plan_is_left_to_whom_it_is_for() -> None:
    asked = messages.decode_request(messages.encode(Init(sandbox_id="s", plan=msgspec.Raw(messages.encode(JAIL)))))
    assert isinstance(asked, Init)
    assert messages.decode_plan(asked.plan, JailPlan) == JAIL
    with pytest.raises(ProtocolError):
        messages.decode_plan(asked.plan, Container)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"kind":"unknown"}',
        b'{"kind":"preload"}',
        b'{"kind":"preload","code":{"key":"k","kind":"module","variant":"plain"},"more":1}',
        b'{"kind":"preload","code":{"key":"k","kind":"program","variant":"plain"}}',
    ],
)
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        messages.decode_request(data)


@given(st.binary(max_size=200))
def test_no_bytes_do_harm(data: bytes) -> None:
    for decode in (messages.decode_request, messages.decode_answer):
        try:
            decode(data)
        except ProtocolError:
            continue


def test_the_daemon_never_imports_wasmtime(tmp_path: Path) -> None:
    program = (
        "import sys; from engines.wasm import build;"
        f"engine = build({{'root': {str(tmp_path)!r}, 'state': {str(tmp_path)!r}}}); engine.features();"
        "engine.problems(); sys.exit('wasmtime' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert list(tmp_path.iterdir()) == []
