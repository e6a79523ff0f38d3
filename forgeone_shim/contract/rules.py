"""Rules in CEL: compiled and type-checked when a policy is read, evaluated over facts. Imported where there are any.

The classes of :mod:`forgeone_shim.contract.facts` become protobuf messages, so that a field that does not exist, or a
comparison of a number with a text, is an error of the policy and not of some pod years later. The evaluator spends a
fixed budget of iterations and no more, so that no rule runs for long.

https://github.com/google/cel-spec/blob/master/doc/langdef.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any, Final, get_args, get_origin, get_type_hints

from cel_expr_python import cel
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from forgeone_shim.contract.facts import (
    ContainerFacts,
    ContractFacts,
    Facts,
    ImageFacts,
    NodeFacts,
    PodFacts,
    Point,
    RequestFacts,
    RuntimeFacts,
)
from forgeone_shim.errors import InvalidInput

MAX_EXPRESSION: Final = 8192
_PACKAGE: Final = "forgeone.zta.v1"
_OF_POD: Final = frozenset({Point.SANDBOX, Point.PORT_FORWARD})
"""Where no container is asked about: a rule there that names one is refused."""
_VARIABLES: Final[Mapping[str, type]] = {
    "pod": PodFacts,
    "contract": ContractFacts,
    "container": ContainerFacts,
    "image": ImageFacts,
    "runtime": RuntimeFacts,
    "node": NodeFacts,
    "request": RequestFacts,
}
_OF_CONTAINER: Final = frozenset({"container", "image"})
_Field: Final = descriptor_pb2.FieldDescriptorProto
_PLAIN: Final[Mapping[object, Any]] = {str: _Field.TYPE_STRING, int: _Field.TYPE_INT64, bool: _Field.TYPE_BOOL}


class Rule:
    """One compiled expression. ``of_container``: it names what is known of containers alone."""

    def __init__(self, where: str, expression: str, points: frozenset[Point]) -> None:
        """Compile it for these points.

        :raises InvalidInput: it is no expression over what is known there, or none that is true or false.
        """
        if len(expression) > MAX_EXPRESSION:
            raise InvalidInput(where, f"is longer than {MAX_EXPRESSION} characters")
        self._env = _schema().environment(of_pod=False)
        try:
            self._program = self._env.compile(expression)
        except Exception as error:  # the binding raises what it likes
            raise InvalidInput(where, f"is no rule: {_short(error)}") from None
        why = self._beyond_pods(expression)
        if why and points & _OF_POD:
            raise InvalidInput(where, f"is no rule for {' or '.join(sorted(points & _OF_POD))}: {why}")
        self.of_container = bool(why)
        if self._program.return_type() != cel.Type.BOOL:
            raise InvalidInput(where, f"is {self._program.return_type()!r}, neither true nor false")

    def _beyond_pods(self, expression: str) -> str:
        try:
            _schema().environment(of_pod=True).compile(expression)
        except Exception as error:  # the binding raises what it likes
            return _short(error)
        return ""

    def why_not(self, activation: Mapping[str, object]) -> str:
        """Empty where the rule holds; else what came of it. Anything but true is a denial."""
        try:
            # A variable that the environment lacks must not be given.
            value = self._program.eval(self._env.Activation(activation))
            if value.type() == cel.Type.BOOL:
                return "" if value.value() is True else "is false"
            return f"cannot be decided: {_short(value.value())}"
        except Exception as error:  # the binding raises what it likes, the spent budget among it
            return f"cannot be decided: {_short(error)}"


def activation(point: Point, facts: Facts) -> dict[str, object]:
    """The variables of rules. What is not known is not there: a rule that asks for it cannot be decided.

    :raises ValueError: a text in them is none (it has half a surrogate pair).
    """
    schema = _schema()
    found: dict[str, object] = {"point": str(point)}
    for name, kind in _VARIABLES.items():
        value = ContractFacts.of(facts.contract) if kind is ContractFacts else getattr(facts, name)
        if value is not None:
            found[name] = schema.message(value)
    return found


class _Schema:
    """The facts' classes as protobuf messages."""

    def __init__(self) -> None:
        file = descriptor_pb2.FileDescriptorProto(name="forgeone/zta/v1/facts.proto", package=_PACKAGE, syntax="proto3")
        order: list[type] = []
        for kind in _VARIABLES.values():
            _describe(file, kind, order)
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        self._classes = {
            kind: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{_message_name(kind)}"))
            for kind in order
        }
        self._names = {kind: tuple(item.name for item in fields(kind)) for kind in order}
        self._environments = {
            of_pod: cel.NewEnv(
                descriptor_pool=pool,
                variables={
                    "point": cel.Type.STRING,
                    **{
                        name: cel.Type(f"{_PACKAGE}.{_message_name(kind)}")
                        for name, kind in _VARIABLES.items()
                        if not (of_pod and name in _OF_CONTAINER)
                    },
                },
            )
            for of_pod in (False, True)
        }

    def environment(self, *, of_pod: bool) -> cel.Env:
        """What rules are compiled in."""
        return self._environments[of_pod]

    def message(self, value: Any) -> Any:
        """A fact as a message."""
        given: dict[str, Any] = {}
        for name in self._names[type(value)]:
            found = getattr(value, name)
            if not found:
                # As a message has it by itself.
                continue
            if isinstance(found, tuple):
                given[name] = [self.message(one) if type(one) in self._classes else one for one in found]
            else:
                given[name] = self.message(found) if type(found) in self._classes else found
        return self._classes[type(value)](**given)


@lru_cache(maxsize=1)
def _schema() -> _Schema:
    return _Schema()


def _describe(file: descriptor_pb2.FileDescriptorProto, kind: type, order: list[type]) -> None:
    """Add a class, and before it those it is made of."""
    if kind in order:
        return
    message = descriptor_pb2.DescriptorProto(name=_message_name(kind))
    hints = get_type_hints(kind)
    for number, item in enumerate(fields(kind), 1):
        made = message.field.add(name=item.name, number=number, label=_Field.LABEL_OPTIONAL)
        hint = hints[item.name]
        inner = get_args(hint)[0] if get_origin(hint) is tuple else hint
        if inner is not hint:
            made.label = _Field.LABEL_REPEATED
        if get_origin(hint) is Mapping:
            # map<string, string>, as protobuf has it: pairs that say they are a map's.
            pair = message.nested_type.add(name=f"{item.name.title().replace('_', '')}Entry")
            pair.options.map_entry = True
            for at, key in enumerate(("key", "value"), 1):
                pair.field.add(name=key, number=at, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
            made.label, made.type = _Field.LABEL_REPEATED, _Field.TYPE_MESSAGE
            made.type_name = f".{_PACKAGE}.{message.name}.{pair.name}"
        elif inner in _PLAIN:
            made.type = _PLAIN[inner]
        else:
            _describe(file, inner, order)
            made.type, made.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{_message_name(inner)}"
    file.message_type.append(message)
    order.append(kind)


def _message_name(kind: type) -> str:
    return kind.__name__.removesuffix("Facts")


def _short(error: object) -> str:
    """The first lines of what the compiler says, with the place it points to."""
    return " ".join(str(error).split())[:500]
