"""Entries of lists are made once for each state."""

from __future__ import annotations

from dataclasses import dataclass

from cri.runtime.items import Items


@dataclass(frozen=True)
class View:
    id: str
    state: str = "running"


def test_an_entry_is_made_again_only_for_another_view() -> None:
    made: list[View] = []

    def make(view: View) -> str:
        made.append(view)
        return f"{view.id} {view.state}"

    items = Items(make)
    a, b = View("a"), View("b")
    assert items.of([a, b]) == [(a, "a running"), (b, "b running")]
    ended = View("b", "ended")
    assert items.of([a, ended]) == [(a, "a running"), (ended, "b ended")]
    assert made == [a, b, ended]


def test_what_is_gone_is_forgotten() -> None:
    made: list[View] = []

    def make(view: View) -> int:
        made.append(view)
        return len(made)

    items, a = Items(make), View("a")
    items.of([a])
    items.of([])
    assert items.of([a]) == [(a, 2)]
