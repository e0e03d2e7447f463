"""A dataclass as a command line: every field is a flag, the comment beside it is its help."""

import argparse
import inspect
import re
import typing
from dataclasses import fields


def add_flags(parser: argparse.ArgumentParser, options: type, inherited: str | None = None) -> None:
    """One flag for every field: `name: type = default  # help`. A field of type `X | None` is unset unless given.

    inherited: where an unset flag takes its value from instead of the field's default; it is then None in the parsed arguments.
    """
    comments = {}
    for cls in reversed(options.__mro__[:-1]):
        comments |= dict(re.findall(r"^    (\w+): [^#\n]*#\s*(.*)$", inspect.getsource(cls), re.MULTILINE))
    types = typing.get_type_hints(options)
    for f in fields(options):
        kind = next(t for t in (*typing.get_args(types[f.name]), types[f.name]) if t is not type(None))
        shown = f" (default: {inherited})" if inherited else "" if f.default is None else f" (default: {f.default})"
        form = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind, "metavar": kind.__name__.upper()}
        parser.add_argument(
            "--" + f.name.replace("_", "-"),
            default=None if inherited else f.default,
            help=(comments[f.name] + shown).replace("%", "%%"),
            **form,
        )
