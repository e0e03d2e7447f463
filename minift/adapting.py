"""A method spec and what it does to a body: `lora:rank=4`, or several in order, `prefix:length=10+lora:rank=8`."""

import re
import sys
from collections.abc import Callable

from torch import nn

from minift.errors import UserError
from minift.methods import METHODS
from minift.methods.surgery import check_tensors, freeze
from minift.specs import parse


def split(spec: str) -> list[str]:
    """The methods of a spec, each with its options; a `+` inside a regular expression does not part them."""
    return re.split(rf"\+(?=(?:{'|'.join(METHODS)})(?:[:+]|$))", spec)


def parse_methods(spec: str) -> list[Callable[[nn.Module], None]]:
    """The methods of a spec, options bound."""
    parts = split(spec)
    for one in parts:
        name = one.partition(":")[0]
        if "+" in name:
            unknown = next(part for part in name.split("+") if part not in METHODS)
            raise UserError(f"--method {spec}: {unknown!r} is not known; known are {', '.join(METHODS)}")
        if len(parts) > 1 and name == "probe":
            raise UserError(f"--method {spec}: probe trains the head alone, as every method does besides; leave it out")
    return [parse(one, METHODS, "--method") for one in parts]


def names_of(spec: str) -> str:
    """The spec without options."""
    return "+".join(one.partition(":")[0] for one in split(spec))


def adapt(body: nn.Module, spec: str) -> None:
    """Freeze the body, then let each method of the spec thaw or wrap what it trains."""
    freeze(body)
    for one, method in zip(split(spec), parse_methods(spec), strict=True):
        try:
            method(body)
            check_tensors(body)
        except ValueError as error:
            raise UserError(f"--method {one}: {error}") from None


def default_lr(spec: str, optimizer: str, width: int) -> float:
    """The method's own rate; of several the lowest, at which none comes apart."""
    return min(file_of(method).lr(optimizer, width) for method in parse_methods(spec))


def default_epochs(spec: str) -> int:
    """The method's own passes over the rows; of several the most."""
    return max(file_of(method).EPOCHS for method in parse_methods(spec))


def file_of(method):
    """The module in which a parsed method stands."""
    return sys.modules[method.func.__module__]
