"""Method specs, `lora:rank=4` or several in order, `prefix:length=10+lora:rank=8`, and how they are applied to a body.

A method may be defined in a file outside the package: `path/to/file.py:name`, with options after a second colon. Such a file is
code, so it is run only where the user has typed it (`parse_methods(spec, typed=True)`) or has listed it in the environment
variable MINIFT_METHODS (paths joined as in PATH), and never because the config.json of a run names it.
Proved by tests/test_adapting.py.
"""

import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from minift.errors import UserError
from minift.methods import METHODS
from minift.methods.surgery import check_tensors, freeze, is_literal, literal_sites
from minift.specs import as_option, bind, options_of, parse

FILE = r"(?:[A-Za-z]:)?[^+:,]+\.py:\w+"  # path/to/file.py:name


def split(spec: str) -> list[str]:
    """The methods of a spec, each with its options; a `+` inside a regular expression does not separate them."""
    return re.split(rf"\+(?=(?:{'|'.join(METHODS)}|{FILE})(?:[:+]|$))", spec)


def in_file(one: str) -> tuple[str, str] | None:
    """(path, name) of a method that is defined in a file outside the package; None for one of METHODS."""
    found = re.match(rf"({FILE})(?::|$)", one)
    return (found[1].rpartition(":")[0], found[1].rpartition(":")[2]) if found else None


def name_of(one: str) -> str:
    """The name of one method of a spec, without options and path."""
    return file[1] if (file := in_file(one)) else one.partition(":")[0]


def parse_methods(spec: str, typed: bool = False) -> list[Callable[[nn.Module], None]]:
    """The methods of a spec, options bound. typed: the user has typed the spec, so files that it names may be run."""
    parts = split(spec)
    for one in parts:
        name = name_of(one)
        if "+" in name:
            unknown = next(part for part in name.split("+") if part not in METHODS)
            raise UserError(f"--method {spec}: {unknown!r} is not known; known are {', '.join(METHODS)}")
        if len(parts) > 1 and name == "probe":
            raise UserError(f"--method {spec}: probe trains the head alone, as every method does besides; leave it out")
    return [parse_one(one, typed) for one in parts]


def parse_one(one: str, typed: bool) -> Callable[[nn.Module], None]:
    file = in_file(one)
    if file is None:
        return parse(one, METHODS, "--method")
    path, name = file
    function = getattr(method_file(path, typed), name, None)
    if not callable(function):
        raise UserError(f"--method {one}: {path} defines no function {name}")
    return bind(function, name, one[len(f"{path}:{name}:") :], f"--method {one}")


def method_file(path: str, typed: bool) -> ModuleType:
    """The module of a method's file outside the package, run once in a process. Raises UserError where it may not be run."""
    file = Path(path).resolve()
    name = f"minift_method_{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    if not file.is_file():
        raise UserError(f"--method {path}: no such file; it holds the code of the method, so the run cannot do without it")
    if not re.fullmatch(FILE, f"{file}:name"):
        raise UserError(f"--method {path}: {file} has a plus, a comma or a colon in its path; move the file")
    allowed = os.environ.get("MINIFT_METHODS", "").split(os.pathsep)
    if not typed and file not in {Path(one).resolve() for one in allowed if one}:
        raise UserError(f"--method {path}: a file of code, which is run only if you allow it: set MINIFT_METHODS={file}")
    spec = importlib.util.spec_from_file_location(name, file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        missing = [attribute for attribute in ("lr", "EPOCHS", "STARTS_AS_PRETRAINED") if not hasattr(module, attribute)]
        if missing:
            raise UserError(f"--method {path}: the file of a method defines {', '.join(missing)} too; see minift/methods/lora.py")
    except BaseException:
        del sys.modules[name]
        raise
    return module


def names_of(spec: str) -> str:
    """The spec without options and paths."""
    return "+".join(map(name_of, split(spec)))


def adapt(body: nn.Module, spec: str) -> None:
    """Freeze the body, then let each method of the spec thaw or wrap what it trains."""
    freeze(body)
    for one, method in zip(split(spec), parse_methods(spec), strict=True):
        try:
            method(body)
            check_tensors(body)
        except ValueError as error:
            raise UserError(f"--method {one}: {error}") from None


def adapt_saved(body: nn.Module, spec: str) -> None:
    """`adapt` for a saved run, whose tensors are loaded next.

    It draws no number from torch's random generator, and compiles no regular expression of the spec, which somebody else may have
    written: sites are roles and names of modules, as `resolved` gives them.
    """
    for one, method in zip(split(spec), parse_methods(spec), strict=True):
        sites = options_of(method).get("sites", "")
        sites = getattr(file_of(method), "NAMED_SITES", {}).get(sites, sites)
        if strange := [site for site in sites.split("/") if sites and not is_literal(body, site)]:
            raise UserError(
                f"--method {one}: sites={strange[0]}: a saved run names roles or modules, and this is neither; "
                "put the names of the modules, joined by /, in its place"
            )
    with torch.random.fork_rng(devices=[]):
        adapt(body, spec)


def resolved(spec: str, body: nn.Module) -> str:
    """The spec with the value of every option, as a run records it: `lora:rank=8,alpha=16.0,...`, because the defaults of a method
    may change later. Its sites are roles and names of modules, not regular expressions. body: plain or adapted.
    """
    parts = []
    for one, method in zip(split(spec), parse_methods(spec), strict=True):
        file, options = file_of(method), options_of(method)
        if "sites" in options:
            sites = getattr(file, "NAMED_SITES", {}).get(options["sites"], options["sites"])
            options["sites"] = literal_sites(body, sites, getattr(file, "SITES", ()))
        values = ",".join(f"{name}={as_option(value)}" for name, value in options.items())
        outside = in_file(one)
        name = f"{Path(outside[0]).resolve()}:{outside[1]}" if outside else name_of(one)
        parts.append(f"{name}:{values}" if values else name)
    return "+".join(parts)


def default_lr(spec: str, optimizer: str, width: int) -> float:
    """The method's default learning rate; of several methods the lowest, at which none diverges."""
    return min(file_of(method).lr(optimizer, width) for method in parse_methods(spec))


def default_epochs(spec: str) -> int:
    """The method's default number of epochs; of several methods the largest."""
    return max(file_of(method).EPOCHS for method in parse_methods(spec))


def lr_factors(spec: str) -> dict[str, float]:
    """Last segment of a parameter's name -> factor on its learning rate, where it is not 1.

    A method's file may hold LR_FACTORS: last segment -> the option that holds the factor. Raises UserError where two methods of the
    spec give one segment different factors.
    """
    factors = {}
    for method in parse_methods(spec):
        for leaf, option in getattr(file_of(method), "LR_FACTORS", {}).items():
            factor = options_of(method)[option]
            if factors.setdefault(leaf, factor) != factor:
                raise UserError(
                    f"--method {spec}: {option}={factor:g} and {option}={factors[leaf]:g} for the same parameters {leaf}"
                )
    return {leaf: factor for leaf, factor in factors.items() if factor != 1.0}


def file_of(method: Callable) -> ModuleType:
    """The module in which a parsed method is defined."""
    return sys.modules[method.func.__module__]
