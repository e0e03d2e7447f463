"""`name:option=value,option=value` on the command line: a row of a table, and options for its function."""

import inspect
import math
from collections.abc import Callable
from functools import partial

from minift.errors import UserError, look_up

SMALLEST, LARGEST = 1e-30, 1e12  # of finite numbers, 0 aside: products of several of them stay within float32
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", tuple: "numbers joined by /"}


def parse(spec: str, table: dict[str, str], flag: str) -> Callable:
    """The function that `table` names, with the options of `spec` bound. Unknown names are answered with the known ones."""
    name, _, rest = spec.partition(":")
    return bind(look_up(table, name, flag), name, rest, f"{flag} {spec}")


def bind(function: Callable, name: str, rest: str, where: str) -> Callable:
    """The function with the options of `rest`, `option=value,option=value`, bound.

    An option is a parameter of the function that has a default; its type is the default's. A finite number with which float32
    cannot compute is refused here, for every option; a function checks its own range. where: the beginning of a message.
    """
    known = options_of(function)
    options = {}
    for part in filter(None, rest.split(",")):
        option, equals, value = part.partition("=")
        if option in options:
            raise UserError(f"{where}: {option} is given twice")
        if option not in known or not equals:
            listed = ", ".join(f"{key}={as_option(default)}" for key, default in known.items()) or "none"
            raise UserError(
                f"{where}: {part!r} is no option of {name} (a value holds no comma); options, with their defaults: {listed}"
            )
        try:
            options[option] = convert(value, type(known[option]))
        except ValueError:
            raise UserError(f"{where}: {option} is {KINDS[type(known[option])]}, not {value!r}") from None
        if not all(map(fits_float32, options[option] if isinstance(options[option], tuple) else (options[option],))):
            raise UserError(f"{where}: {option} is 0, or a number of a size from {SMALLEST:g} to {LARGEST:g}, not {value!r}")
    return partial(function, **options)


def convert(value: str, kind: type):
    if kind is tuple:  # of numbers, as betas=0.9/0.98
        return tuple(map(float, value.split("/")))
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise ValueError(value)
        return value.lower() == "true"
    return kind(value)


def fits_float32(value) -> bool:
    return not isinstance(value, float) or value == 0 or not math.isfinite(value) or SMALLEST <= abs(value) <= LARGEST


def as_option(value) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def options_of(function: Callable) -> dict[str, object]:
    """The options of a function, with their defaults."""
    return {p.name: p.default for p in inspect.signature(function).parameters.values() if p.default is not p.empty}
