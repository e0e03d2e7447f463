"""The commands that a wheel installs (minift-train, -convert, -predict, ...), and how the user calls them.

train.py and convert.py lie at the top of a checkout; in a wheel they are modules of this package.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from minift.errors import command

CHECKOUT = Path(__file__).parent.parent


def is_checkout() -> bool:
    """Whether this package lies in a checkout, beside the scripts."""
    return (CHECKOUT / "convert.py").is_file() and (CHECKOUT / "pyproject.toml").is_file()


def spelled(script: str) -> str:
    """How the user calls train or convert: by the file of the checkout, or by the command that the wheel has installed."""
    return f"python {script}.py" if is_checkout() else f"minift-{script}"


def script(name: str) -> ModuleType:
    """A module of this package, or a script at the top of the checkout."""
    if importlib.util.find_spec(f"minift.{name}") is not None:
        return importlib.import_module(f"minift.{name}")
    if str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    return importlib.import_module(name)


def run(name: str) -> None:
    command(script(name).main, name)


def train() -> None:
    run("train")


def convert() -> None:
    run("convert")


def predict() -> None:
    run("predict")


def evaluate() -> None:
    run("evaluate")


def report() -> None:
    run("report")


def trace() -> None:
    run("trace")


def generate() -> None:
    run("generate")


def prompting() -> None:
    run("prompting")
