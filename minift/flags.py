"""A dataclass as a command line: every field that `flag` makes is a flag, with its help and its range beside it."""

import argparse
import difflib
import shlex
import typing
from collections import Counter
from collections.abc import Container
from dataclasses import Field, fields
from itertools import takewhile

import minift
from minift.errors import UserError, say
from minift.fields import expected, ranged


class Parser(argparse.ArgumentParser):
    """Flags in full, and one line for a mistake."""

    def __init__(self, prog: str, description: str = "", add_help: bool = True):
        super().__init__(prog=prog, description=description, add_help=add_help, allow_abbrev=False)
        if add_help:
            self.add_argument("--version", action="version", version=f"minift {minift.__version__}")

    def error(self, message: str):
        raise UserError(f"{message}; --help lists the flags")

    def parse(self, argv: list[str], elsewhere: dict[str, str] | None = None) -> argparse.Namespace:
        """The parsed arguments. elsewhere: flag -> why it is not one of these. Raises UserError for an unknown one; of one that is
        given twice the last counts, which is said.
        """
        given = Counter(map(self._option_string_actions.get, (one.partition("=")[0] for one in takewhile("--".__ne__, argv))))
        for action, times in given.items():
            if action and times > 1 and not isinstance(action, argparse._AppendAction):
                say(f"note: {action.option_strings[0]} is given {times} times; the last one counts")
        arguments, unknown = self.parse_known_args(argv)
        name = next((one.partition("=")[0] for one in unknown), None)
        if name is None:
            return arguments
        if why := (elsewhere or {}).get(name):
            raise UserError(f"{name} {why}")
        if not name.startswith("--"):
            raise UserError(f"{name!r} is no flag and belongs to none; --help lists them")
        near = difflib.get_close_matches(name, list(self._option_string_actions), 3)
        raise UserError(f"{name}: no such flag; " + (f"did you mean {' or '.join(near)}?" if near else "--help lists them"))


def flag(
    default,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
    several: bool = False,
):
    """A field of a dataclass of flags.

    choices: the words that it takes. least, above, below, most: least <= value <= most, above < value < below; a number is always
    finite. several: values joined by commas are a grid, of which each run takes one.
    """
    return ranged(default, choices=choices, least=least, above=above, below=below, most=most, help=help, several=several)


def spelled(name: str) -> str:
    """The flag of a field, as it is typed."""
    return "--" + name.replace("_", "-")


def typed(name: str, value) -> str:
    """A flag and its value, as they are typed."""
    if isinstance(value, bool):
        return spelled(name) if value else "--no-" + spelled(name).removeprefix("--")
    return f"{spelled(name)} {shlex.quote(','.join(map(str, value)) if isinstance(value, tuple) else str(value))}"


def kind_of(f: Field, types: dict) -> type:
    """The type of a flag's value; of `X | None` it is X."""
    return next(kind for kind in (*typing.get_args(types[f.name]), types[f.name]) if kind is not type(None))


def add_flags(parser: argparse.ArgumentParser, options: type, inherited: str | None = None, without: Container[str] = ()) -> None:
    """One flag for every field but those in `without`. A field of type `X | None` is unset unless given.

    inherited: where an unset flag takes its value from instead of the field's default; it is then None in the parsed arguments.
    """
    types = typing.get_type_hints(options)
    for f in fields(options):
        if f.name in without:
            continue
        kind, several = kind_of(f, types), f.metadata["several"]
        shown = f" (default: {inherited})" if inherited else "" if f.default is None else f" (default: {f.default})"
        form = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": grid(kind) if several else kind}
        if kind is not bool:
            choices = f.metadata["choices"]
            form["metavar"] = "{" + ",".join(choices) + "}" if choices else {int: "N", float: "X", str: "VALUE"}[kind]
        default = None if inherited else f.default
        parser.add_argument(spelled(f.name), default=default, help=(f.metadata["help"] + shown).replace("%", "%%"), **form)


def grid(kind: type):
    """text -> one value of this type, or a tuple of several that commas part."""

    def values(text: str):
        several = tuple(kind(part) for part in text.split(","))
        return several if len(several) > 1 else several[0]

    values.__name__ = kind.__name__  # argparse names it where a value does not parse
    return values


def check_whole(arguments: argparse.Namespace, **limits: tuple[int, int]) -> None:
    """Raises UserError for the first of these arguments that is set and not from the one limit to the other, both counted."""
    for name, (least, most) in limits.items():
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"{spelled(name)} {value}: expected a whole number at least {least} and at most {most:,}")


def check_ranges(options) -> None:
    """Raises UserError for the first flag whose value lies outside its range."""
    for f in fields(options):
        value = getattr(options, f.name)
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None and not (f.metadata["several"] and one == f.default):
                check_range(f, one)


def check_range(f: Field, value) -> None:
    if value == "" and not f.metadata["choices"]:
        raise UserError(f"{spelled(f.name)} is empty: give it a value or leave it out")
    if range_of := expected(f, value, isinstance(f.default, int)):
        raise UserError(f"{spelled(f.name)} {value}: expected {range_of}")
