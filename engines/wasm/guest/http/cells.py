"""Component values between wasmtime's C API and Python, by converters made once for each type.

A value is a cell of 32 bytes (``wasmtime_component_val_t``: kind at 0, payload at 8). wasmtime-py converts with a class
and several ctypes objects for each value, and a ``list<u8>`` element by element; a server cannot wait for that. Here a
type becomes a closure that works on addresses, and bytes move as strided copies.

In Python's words: ``result`` is ``("ok", value)`` or ``("err", value)``, a variant's case is its name or ``(name,
payload)``, an option is ``None`` or the value, a record is the tuple of its fields, flags are a frozenset of names,
``list<u8>`` is bytes, and a resource is the host's object itself.
"""

import ctypes
import struct
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from wasmtime import component as wit
from wasmtime._ffi import dll

CELL = 32
_PAYLOAD = 8
_FIELD = 48
# Of types within types; a guest tells what its imports' types are, and may tell anything.
_DEPTH_MAX = 32
# A word, and a cell for each value that may be within another one.
SCRATCH = CELL * (_DEPTH_MAX + 1)
_ENTRY = 16

# Kinds of values (wasmtime/component/val.h); those of numbers are in _SCALARS.
_BOOL, _U8, _CHAR, _STRING, _LIST, _RECORD, _TUPLE = 0, 2, 11, 12, 13, 14, 15
_VARIANT, _ENUM, _OPTION, _RESULT, _FLAGS, _RESOURCE = 16, 17, 18, 19, 20, 21

# The process's own memory as one buffer: an address is an index. Slices of it are views, nothing is copied or touched.
memory = memoryview((ctypes.c_char * (1 << 56)).from_address(0)).cast("B")

# These calls only allocate or look something up: keeping the lock is cheaper than giving it up and asking for it again.
_library = ctypes.PyDLL(None, handle=dll._handle)
_ptr, _size, _u32 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32


def _function(name: str, result: object, *arguments: object) -> Callable[..., Any]:
    function = _library[name]
    function.restype = result  # type: ignore[assignment]
    function.argtypes = arguments  # type: ignore[assignment]
    return function


_new_bytes = _function("wasm_byte_vec_new", None, _ptr, _size, ctypes.c_char_p)
_new_value = _function("wasmtime_component_val_new", _ptr, _ptr)
_delete_value = _function("wasmtime_component_val_delete", None, _ptr)
_new_list = _function("wasmtime_component_vallist_new_uninit", None, _ptr, _size)
_new_tuple = _function("wasmtime_component_valtuple_new_uninit", None, _ptr, _size)
_new_record = _function("wasmtime_component_valrecord_new_uninit", None, _ptr, _size)
_new_flags = _function("wasmtime_component_valflags_new_uninit", None, _ptr, _size)
_host_new = _function("wasmtime_component_resource_host_new", _ptr, ctypes.c_bool, _u32, _u32)
_host_rep = _function("wasmtime_component_resource_host_rep", _u32, _ptr)
_host_delete = _function("wasmtime_component_resource_host_delete", None, _ptr)
_host_to_any = _function("wasmtime_component_resource_host_to_any", _ptr, _ptr, _ptr, _ptr)
_any_to_host = _function("wasmtime_component_resource_any_to_host", _ptr, _ptr, _ptr, _ptr)
_delete_error = _function("wasmtime_error_delete", None, _ptr)
new_error = _function("wasmtime_error_new", _ptr, ctypes.c_char_p)

_word = struct.Struct("<Q")
_pair = struct.Struct("<QQ")
_word_at, _pair_at, _put_pair = _word.unpack_from, _pair.unpack_from, _pair.pack_into
_SCALARS: dict[type, tuple[int, str]] = {
    wit.Bool: (_BOOL, "?"),
    wit.S8: (1, "b"),
    wit.U8: (_U8, "B"),
    wit.S16: (3, "<h"),
    wit.U16: (4, "<H"),
    wit.S32: (5, "<i"),
    wit.U32: (6, "<I"),
    wit.S64: (7, "<q"),
    wit.U64: (8, "<Q"),
    wit.F32: (9, "<f"),
    wit.F64: (10, "<d"),
}


class Resource(Protocol):
    """A host object that guests hold by a handle. ``kind`` numbers its resource type."""

    kind: int

    def drop(self) -> None:
        """The guest has given the handle up."""


class Holder(Protocol):
    """What converters need of one instance: its store, its table of handles, and ``scratch``, the address of
    :data:`SCRATCH` bytes (zeroed at first) that nothing else uses while a value is converted."""

    context: int
    scratch: int
    table: dict[int, Any]

    def hold(self, resource: Any) -> int:
        """A number for the resource, by which a handle finds it in the table."""


Reader = Callable[[Holder, int], Any]
Writer = Callable[[Holder, int, Any], None]


def parts(kind: Any, most: int, depth: int = 0) -> int:
    """How many types there are in a type, itself included; it is looked at no further than ``most`` of them.

    Converters are made only of types that were counted: those of deeper ones would write past the scratch memory.

    :raises TypeError: there are more, or they are too deep.
    """
    if depth > _DEPTH_MAX:
        raise TypeError(f"types of more than {_DEPTH_MAX} levels are not supported")
    within = _PARTS.get(type(kind))
    found = 1
    for each in () if within is None else within(kind):
        # A case without a payload is one, too.
        found += 1 if each is None else parts(each, most - found, depth + 1)
        if found > most:
            raise TypeError(f"types of more than {most} parts are not supported")
    return found


def reader(kind: Any) -> Reader:
    """What reads a cell of this type."""
    plain = _SCALARS.get(type(kind))
    if plain is not None:
        unpack = struct.Struct(plain[1]).unpack_from
        return lambda _holder, at: unpack(memory, at + _PAYLOAD)[0]
    make = _READERS.get(type(kind))
    if make is None:
        raise TypeError(f"values of type {type(kind).__name__} are not supported")
    return make(kind)


def writer(kind: Any) -> Writer:
    """What writes a value of this type into a cell that holds nothing that must be freed."""
    plain = _SCALARS.get(type(kind))
    if plain is not None:
        tag, pack = plain[0], struct.Struct(plain[1]).pack_into

        def write(_holder: Holder, at: int, value: Any) -> None:
            pack(memory, at + _PAYLOAD, value)
            memory[at] = tag

        return write
    make = _WRITERS.get(type(kind))
    if make is None:
        raise TypeError(f"values of type {type(kind).__name__} are not supported")
    return make(kind)


def _text_at(at: int) -> str:
    size, data = _pair_at(memory, at)
    return str(memory[data : data + size], "utf-8") if size else ""


def _put_text(at: int, encoded: bytes) -> None:
    _new_bytes(at, len(encoded), encoded)


def _read_string(_kind: Any) -> Reader:
    return lambda _holder, at: _text_at(at + _PAYLOAD)


def _write_string(_kind: Any) -> Writer:
    def write(_holder: Holder, at: int, value: str) -> None:
        _put_text(at + _PAYLOAD, value.encode())
        memory[at] = _STRING

    return write


def _read_char(_kind: Any) -> Reader:
    return lambda _holder, at: chr(int.from_bytes(memory[at + _PAYLOAD : at + _PAYLOAD + 4], "little"))


def _write_char(_kind: Any) -> Writer:
    def write(_holder: Holder, at: int, value: str) -> None:
        memory[at + _PAYLOAD : at + _PAYLOAD + 4] = ord(value).to_bytes(4, "little")
        memory[at] = _CHAR

    return write


def _read_list(kind: Any) -> Reader:
    if isinstance(kind.element, wit.U8):

        def read_bytes(_holder: Holder, at: int) -> bytes:
            size, data = _pair_at(memory, at + _PAYLOAD)
            # Copied first: a step through bytes takes half as long as one through a view.
            return memory[data : data + CELL * size].tobytes()[_PAYLOAD::CELL] if size else b""

        return read_bytes
    element = reader(kind.element)

    def read(holder: Holder, at: int) -> list[Any]:
        size, data = _pair_at(memory, at + _PAYLOAD)
        return [element(holder, data + CELL * i) for i in range(size)]

    return read


def _write_list(kind: Any) -> Writer:
    if isinstance(kind.element, wit.U8):
        tags = bytes((_U8,))

        def write_bytes(_holder: Holder, at: int, value: bytes) -> None:
            size = len(value)
            _new_list(at + _PAYLOAD, size)
            if size:
                (data,) = _word_at(memory, at + _PAYLOAD + 8)
                listed = bytearray(CELL * size)
                listed[::CELL] = tags * size
                listed[_PAYLOAD::CELL] = value
                memory[data : data + CELL * size] = listed
            memory[at] = _LIST

        return write_bytes
    element = writer(kind.element)

    def write(holder: Holder, at: int, value: list[Any]) -> None:
        _new_list(at + _PAYLOAD, len(value))
        memory[at] = _LIST
        (data,) = _word_at(memory, at + _PAYLOAD + 8)
        for i, item in enumerate(value):
            element(holder, data + CELL * i, item)

    return write


def _read_tuple(kind: Any) -> Reader:
    elements = [(reader(each), CELL * i) for i, each in enumerate(kind.elements)]

    def read(holder: Holder, at: int) -> tuple[Any, ...]:
        (data,) = _word_at(memory, at + _PAYLOAD + 8)
        return tuple(element(holder, data + offset) for element, offset in elements)

    return read


def _write_tuple(kind: Any) -> Writer:
    elements = [writer(each) for each in kind.elements]

    def write(holder: Holder, at: int, value: tuple[Any, ...]) -> None:
        _new_tuple(at + _PAYLOAD, len(elements))
        memory[at] = _TUPLE
        (data,) = _word_at(memory, at + _PAYLOAD + 8)
        for element, item in zip(elements, value, strict=True):
            element(holder, data, item)
            data += CELL

    return write


def _read_record(kind: Any) -> Reader:
    fields = [(reader(each), _FIELD * i + _ENTRY) for i, (_, each) in enumerate(kind.fields)]

    def read(holder: Holder, at: int) -> tuple[Any, ...]:
        (data,) = _word_at(memory, at + _PAYLOAD + 8)
        return tuple(field(holder, data + offset) for field, offset in fields)

    return read


def _write_record(kind: Any) -> Writer:
    fields = [(name.encode(), writer(each)) for name, each in kind.fields]

    def write(holder: Holder, at: int, value: tuple[Any, ...]) -> None:
        _new_record(at + _PAYLOAD, len(fields))
        memory[at] = _RECORD
        (data,) = _word_at(memory, at + _PAYLOAD + 8)
        for (name, field), item in zip(fields, value, strict=True):
            _put_text(data, name)
            field(holder, data + _ENTRY, item)
            data += _FIELD

    return write


def _boxed(holder: Holder, write: Writer, value: Any) -> int:
    """A cell of its own for a payload: wasmtime owns it, and what is in it, from now on."""
    at = holder.scratch + CELL
    holder.scratch = at
    try:
        write(holder, at, value)
        boxed: int = _new_value(at)
        return boxed
    finally:
        holder.scratch = at - CELL


def _read_variant(kind: Any) -> Reader:
    cases = {name: None if each is None else reader(each) for name, each in kind.cases}

    def read(holder: Holder, at: int) -> Any:
        name = _text_at(at + _PAYLOAD)
        payload = cases[name]
        if payload is None:
            return name
        return name, payload(holder, _word_at(memory, at + 24)[0])

    return read


def _write_variant(kind: Any) -> Writer:
    cases = {name: (name.encode(), None if each is None else writer(each)) for name, each in kind.cases}

    def write(holder: Holder, at: int, value: Any) -> None:
        name, item = (value, None) if isinstance(value, str) else value
        encoded, payload = cases[name]
        boxed = 0 if payload is None else _boxed(holder, payload, item)
        _put_text(at + _PAYLOAD, encoded)
        _word.pack_into(memory, at + 24, boxed)
        memory[at] = _VARIANT

    return write


def _read_enum(_kind: Any) -> Reader:
    return lambda _holder, at: _text_at(at + _PAYLOAD)


def _write_enum(_kind: Any) -> Writer:
    def write(_holder: Holder, at: int, value: str) -> None:
        _put_text(at + _PAYLOAD, value.encode())
        memory[at] = _ENUM

    return write


def _read_option(kind: Any) -> Reader:
    payload = reader(kind.payload)

    def read(holder: Holder, at: int) -> Any:
        (boxed,) = _word_at(memory, at + _PAYLOAD)
        return payload(holder, boxed) if boxed else None

    return read


def _write_option(kind: Any) -> Writer:
    payload = writer(kind.payload)

    def write(holder: Holder, at: int, value: Any) -> None:
        _word.pack_into(memory, at + _PAYLOAD, 0 if value is None else _boxed(holder, payload, value))
        memory[at] = _OPTION

    return write


def _read_result(kind: Any) -> Reader:
    ok = None if kind.ok is None else reader(kind.ok)
    err = None if kind.err is None else reader(kind.err)

    def read(holder: Holder, at: int) -> tuple[str, Any]:
        good = memory[at + _PAYLOAD] != 0
        (boxed,) = _word_at(memory, at + 16)
        payload = ok if good else err
        return ("ok" if good else "err"), (None if payload is None else payload(holder, boxed))

    return read


def _write_result(kind: Any) -> Writer:
    ok, err = result_writers(kind)

    def write(holder: Holder, at: int, value: tuple[str, Any]) -> None:
        (ok if value[0] == "ok" else err)(holder, at, value[1])

    return write


def result_writers(kind: Any) -> tuple[Writer, Writer]:
    """What writes a ``result`` that is good, and one that is not, of the value alone."""
    return _result_writer(kind.ok, True), _result_writer(kind.err, False)


def _result_writer(kind: Any, good: bool) -> Writer:
    if kind is None:

        def write_nothing(_holder: Holder, at: int, _value: Any) -> None:
            _put_pair(memory, at + _PAYLOAD, good, 0)
            memory[at] = _RESULT

        return write_nothing
    payload = writer(kind)

    def write(holder: Holder, at: int, value: Any) -> None:
        _put_pair(memory, at + _PAYLOAD, good, _boxed(holder, payload, value))
        memory[at] = _RESULT

    return write


def _read_flags(_kind: Any) -> Reader:
    def read(_holder: Holder, at: int) -> frozenset[str]:
        size, data = _pair_at(memory, at + _PAYLOAD)
        return frozenset(_text_at(data + _ENTRY * i) for i in range(size))

    return read


def _write_flags(_kind: Any) -> Writer:
    def write(_holder: Holder, at: int, value: frozenset[str]) -> None:
        _new_flags(at + _PAYLOAD, len(value))
        memory[at] = _FLAGS
        (data,) = _word_at(memory, at + _PAYLOAD + 8)
        for i, name in enumerate(sorted(value)):
            _put_text(data + _ENTRY * i, name.encode())

    return write


def _rep_at(holder: Holder, at: int) -> int:
    slot = holder.scratch
    error = _any_to_host(holder.context, _word_at(memory, at + _PAYLOAD)[0], slot)
    if error:
        _delete_error(error)
        raise TypeError("the guest passed a resource that is not this host's")
    (host,) = _word_at(memory, slot)
    rep: int = _host_rep(host)
    _host_delete(host)
    return rep


def read_own(holder: Holder, at: int) -> Any:
    """A resource that the guest gives back for good."""
    return holder.table.pop(_rep_at(holder, at))


def read_borrow(holder: Holder, at: int) -> Any:
    """A resource that the guest lends."""
    return holder.table[_rep_at(holder, at)]


def write_own(holder: Holder, at: int, value: Resource) -> None:
    """A resource given to the guest for good."""
    rep = holder.hold(value)
    host = _host_new(True, rep, value.kind)
    error = _host_to_any(holder.context, host, at + _PAYLOAD)
    _host_delete(host)
    if error:
        _delete_error(error)
        del holder.table[rep]
        raise TypeError("the store took no resource")
    memory[at] = _RESOURCE


_PARTS: dict[type, Callable[[Any], Iterable[Any]]] = {
    wit.ListType: lambda kind: (kind.element,),
    wit.TupleType: lambda kind: kind.elements,
    wit.RecordType: lambda kind: (each for _, each in kind.fields),
    wit.VariantType: lambda kind: (each for _, each in kind.cases),
    wit.OptionType: lambda kind: (kind.payload,),
    wit.ResultType: lambda kind: (kind.ok, kind.err),
}
_READERS: dict[type, Callable[[Any], Reader]] = {
    wit.Char: _read_char,
    wit.String: _read_string,
    wit.ListType: _read_list,
    wit.TupleType: _read_tuple,
    wit.RecordType: _read_record,
    wit.VariantType: _read_variant,
    wit.EnumType: _read_enum,
    wit.OptionType: _read_option,
    wit.ResultType: _read_result,
    wit.FlagsType: _read_flags,
    wit.OwnType: lambda _kind: read_own,
    wit.BorrowType: lambda _kind: read_borrow,
}
_WRITERS: dict[type, Callable[[Any], Writer]] = {
    wit.Char: _write_char,
    wit.String: _write_string,
    wit.ListType: _write_list,
    wit.TupleType: _write_tuple,
    wit.RecordType: _write_record,
    wit.VariantType: _write_variant,
    wit.EnumType: _write_enum,
    wit.OptionType: _write_option,
    wit.ResultType: _write_result,
    wit.FlagsType: _write_flags,
    wit.OwnType: lambda _kind: write_own,
}


def delete(at: int) -> None:
    """Free what a cell holds."""
    _delete_value(at)
