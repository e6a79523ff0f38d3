"""The command line, from the parsers that read it. Nothing of argparse's own layout: that differs between Pythons."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from forgeone_shim.cli.main import parser

# argparse has no public name for these.
_Subparsers = argparse._SubParsersAction
_Help = argparse._HelpAction


def forge() -> str:
    """Every command of ``forge``, in the order of its help."""
    top = parser()
    parts = ["| command | |", "|---|---|"]
    verbs = list(_verbs(top))
    parts += [f"| [`forge {name}`](#forge-{name}) | {text} |" for name, text, _ in verbs]
    for name, _, one in verbs:
        parts += ["", *_command(f"forge {name}", one, 2)]
    return "\n".join(parts)


def _command(name: str, one: argparse.ArgumentParser, level: int, told: str = "") -> Iterator[str]:
    """Its section and those of the commands below it; ``told`` is what is said where it says nothing of itself."""
    yield from (f"{'#' * level} {name}", "")
    yield from (f"    {name}{_usage(one)}", "")
    if description := one.description or (told and f"{told[0].upper()}{told[1:]}."):
        yield from (_text(description, one), "")
    rows = [_row(action, one) for action in one._actions if not _common(action)]
    if rows:
        yield from ("| argument | meaning |", "|---|---|", *rows)
    if one.epilog:
        yield from ("", _text(one.epilog, one))
    for verb, text, below in _verbs(one):
        yield ""
        yield from _command(f"{name} {verb}", below, level + 1, text)


def _common(action: argparse.Action) -> bool:
    """What every command has is told once, by hand; what a command leads to has a place of its own."""
    return isinstance(action, _Subparsers | _Help) or action.option_strings == ["--socket"]


def _verbs(one: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    for action in one._actions:
        if isinstance(action, _Subparsers):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            yield from ((name, told.get(name, ""), below) for name, below in action.choices.items())


def _usage(one: argparse.ArgumentParser) -> str:
    words = [" [OPTIONS]"] if any(a.option_strings and not isinstance(a, _Help) for a in one._actions) else []
    words += [f" {_flag(a)} {_value(a)}" for a in one._actions if a.option_strings and a.required]
    for action in one._actions:
        if isinstance(action, _Subparsers):
            words.append(" COMMAND" if action.required else " [COMMAND]")
        elif not action.option_strings:
            words.append(f" {_positional(action)}")
    return "".join(words)


def _positional(action: argparse.Action) -> str:
    name = _name(action)
    if action.nargs == argparse.REMAINDER:
        return f"[{name} ...]"
    forms = {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ..."}
    return forms.get(str(action.nargs), name)


def _name(action: argparse.Action) -> str:
    if action.metavar:
        return action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    return "|".join(map(str, action.choices)) if action.choices else action.dest.upper()


def _flag(action: argparse.Action) -> str:
    return action.option_strings[-1]


def _value(action: argparse.Action) -> str:
    return "" if action.nargs == 0 else _name(action)


def _row(action: argparse.Action, of: argparse.ArgumentParser) -> str:
    value = _value(action)
    named = ", ".join(f"{flag} {value}".strip() for flag in action.option_strings) or _positional(action)
    # A vertical line ends the cell of a table, within code too.
    cells = (one.replace("|", "\\|") for one in (f"`{named}`", _meaning(action, of)))
    return f"| {' | '.join(cells)} |"


def _meaning(action: argparse.Action, of: argparse.ArgumentParser) -> str:
    text = _text(action.help or "", of, action)
    default = action.default
    plain = isinstance(default, str | int | float) and not isinstance(default, bool) and default not in ("", 0)
    if plain and "default" not in text and default != argparse.SUPPRESS:
        text = f"{text} (default: `{default}`)".strip()
    if action.choices and action.metavar:
        text += f" (one of {', '.join(f'`{one}`' for one in action.choices)})"
    return text


def _text(text: str, of: argparse.ArgumentParser, action: argparse.Action | None = None) -> str:
    told = {"prog": of.prog} | ({} if action is None else vars(action))
    return " ".join((text % told if "%" in text else text).split())
