"""What the source says of the fields of a class: the string below each of them, which Python itself forgets."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType


class Undocumented(Exception):
    """Something that a page is to have has no text; says what, and where it belongs."""


@dataclass(frozen=True, slots=True)
class Section:
    """A class: its docstring, and the text of each field, a paragraph a line."""

    name: str
    intro: str
    fields: dict[str, str]

    def text(self, field: str) -> str:
        """What is said of a field. :raises Undocumented: nothing is."""
        if not self.fields.get(field):
            raise Undocumented(
                f"{self.name}.{field} has no text: a string below it is to say what it means; then run `make reference`"
            )
        return self.fields[field]


def sections(module: ModuleType) -> dict[str, Section]:
    """The classes of a module, by name."""
    tree = ast.parse(inspect.getsource(module))
    return {node.name: _section(module, node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _section(module: ModuleType, node: ast.ClassDef) -> Section:
    intro = flat(ast.get_docstring(node) or "")
    return Section(f"{module.__name__}.{node.name}", intro, dict(_below(node.body)))


def constants(module: ModuleType) -> dict[str, str]:
    """The same of the constants of a module."""
    return dict(_below(ast.parse(inspect.getsource(module)).body))


def _below(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, below in pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if (
            isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(found := below.value.value, str)
        ):
            yield field.target.id, flat(inspect.cleandoc(found))


def flat(text: str) -> str:
    """Each paragraph as one line."""
    return "\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
