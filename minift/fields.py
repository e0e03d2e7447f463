"""What a dataclass says of its fields beside their types: the values that they take. For flags, and for what JSON files hold."""

import math
import typing
from dataclasses import MISSING, Field, field, fields

from minift.errors import UserError

HOLDS = {
    "at least": lambda value, limit: value >= limit,
    "above": lambda value, limit: value > limit,
    "below": lambda value, limit: value < limit,
    "at most": lambda value, limit: value <= limit,
}


def ranged(
    default=MISSING,
    *,
    choices: tuple[str, ...] | None = None,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
    **metadata,
):
    """A field of a dataclass.

    choices: the words that it takes. least, above, below, most: least <= value <= most, above < value < below; a number is always
    finite. metadata: whatever else is to be known of it.
    """
    limits = {"at least": least, "above": above, "below": below, "at most": most}
    limits = {words: limit for words, limit in limits.items() if limit is not None}
    return field(default=default, metadata={"choices": choices, "limits": limits, **metadata})


def expected(f: Field, value, whole: bool) -> str | None:
    """What the field takes, where the value is outside of that; None where it is not. whole: whether it is a whole number."""
    choices, limits = f.metadata.get("choices"), f.metadata.get("limits", {})
    if choices:
        return None if value in choices else " or ".join([", ".join(choices[:-1]), choices[-1]])
    if isinstance(value, str | bool) or (limits == {} and not isinstance(value, float)):
        return None
    for one in value if isinstance(value, list | tuple) else (value,):
        if not is_finite(one) or not all(HOLDS[words](one, limit) for words, limit in limits.items()):
            what = " and ".join(f"{words} {limit:g}" for words, limit in limits.items())
            return f"a {'whole ' if whole else ''}number {what}".rstrip()
    return None


def is_finite(number: int | float) -> bool:
    """Also of an integer that is too large for a float: not finite."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def read_fields(kind: type, stored, what: str):
    """The instance of the dataclass `kind` that a JSON object describes; a field with a default may be missing.

    Raises UserError where it is no object, or a field is missing, unknown, of another type or outside of its range. what: what it
    describes, for the message.
    """
    if not isinstance(stored, dict):
        raise UserError(f"{what}: an object is expected, found {shown(stored)}")
    types, known = typing.get_type_hints(kind), {f.name: f for f in fields(kind)}
    required = {name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    if not required <= stored.keys() <= known.keys():
        found = shown(", ".join(map(str, stored)) or "none")
        raise UserError(f"{what}: it has the fields {', '.join(known)}, and here are {found}")
    for name, value in stored.items():
        if not fits(value, types[name]):
            raise UserError(f"{what}: {name} is {shown(value)}, which is not what it has there")
        if value is not None and (range_of := expected(known[name], value, types[name] is int)):
            raise UserError(f"{what}: {name} is {shown(value)}; expected {range_of}")
    try:
        return kind(**stored)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None


def fits(value, kind) -> bool:
    """Whether a JSON value is of this type: a plain type, X | Y, list[X], tuple[X, ...], tuple[X, X] or dict[str, X]."""
    inner, origin = typing.get_args(kind), typing.get_origin(kind)
    if origin is tuple:
        count = isinstance(value, list | tuple) and (inner[-1] is Ellipsis or len(value) == len(inner))
        return count and all(fits(one, inner[0]) for one in value)
    if origin is list:
        return isinstance(value, list) and all(fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(one, inner[1]) for one in value.values())
    if inner:
        return any(fits(value, one) for one in inner)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, kind)


def shown(value) -> str:
    """A value in a message, of at most 60 characters."""
    text = (
        repr(value)
        if not isinstance(value, int) or abs(value) < 10**30
        else f"a number of {len(hex(value)) - 2} hexadecimal digits"
    )
    return text if len(text) <= 60 else text[:57] + "..."
