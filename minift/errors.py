"""Mistakes of the user's: one line on stderr, exit code 2. A bug stays a traceback."""

import errno
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LONGEST = 2000  # characters of a message
PACKAGES = ("torch", "torchvision", "PIL", "tokenizers", "safetensors", "numpy", "tqdm")  # that minift needs


class UserError(Exception):
    """What is wrong, where (file, line, column), what to do: all in one line, also where a name in it holds the end of one.

    A value of thousands of characters is cut out of the middle of the line; what to do stands at its end.
    """

    def __str__(self) -> str:
        said = one_line(super().__str__())
        return said if len(said) <= LONGEST else f"{said[: LONGEST - 400]} ... {said[-400:]}"


class Diverged(UserError):
    """Training whose loss or weights are no longer finite. rows: the numbers of the training rows of that step, where it is one."""

    def __init__(self, message: str, rows=()):
        super().__init__(message)
        self.rows = rows


class Lost(UserError):
    """Another process of the same run has ended."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which the system sends where it ends a process in good order."""


def one_line(text: str, kept: str = "") -> str:
    """The text with its ends of lines and other control characters written as Python writes them, but for those in `kept`."""
    strange = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"
    return re.sub(strange, lambda found: found[0] if found[0] in kept else repr(found[0])[1:-1], text)


def printable(text: str) -> str:
    """What to print of a text that a file holds or a model has written. A terminal would obey the control characters in it: there
    all but the ends of lines and tabs are escaped. A file or a pipe gets the text as it is.
    """
    return one_line(text, kept="\n\t") if sys.stdout.isatty() else text


def is_there(path: Path) -> bool:
    """Whether there is a file. Raises UserError for a directory, and for a pipe or a device, which would be waited for."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: a file is expected, and this is {'a directory' if path.is_dir() else 'a pipe or a device'}")
    return path.is_file()


def brief(error: Exception) -> str:
    """What a library says, in one line and at most 200 characters: it may repeat a whole file."""
    return " ".join(str(error).split())[:200]


def command(main: Callable[[list[str]], int | None], name: str) -> None:
    """Run a command line's `main` and leave the process: 0 or what main returns, 2 after a mistake, 130 after Ctrl-C, 143 after
    SIGTERM.
    """
    open_streams()
    sys.stdout.reconfigure(errors="backslashreplace")  # a text may hold what the terminal's encoding cannot show
    signal.signal(signal.SIGTERM, terminate)
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except UserError as error:
        said = str(error)
        code = say(said if said.startswith(f"{name}: ") else f"{name}: {said}", 2)
    except KeyboardInterrupt as stop:
        said = f"\n{name}: stopped{f', {stop}' if stop.args else ''}"
        code = say(said, 143 if isinstance(stop, Terminated) else 130)
    except BrokenPipeError:  # the reader of the pipe has seen enough, as in `... | head`
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        code = 141
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        code = say(f"{name}: this Python, {sys.executable}, has no {error.name}; in the checkout: pip install -e .", 2)
    except OSError as error:  # a directory that may not be written, a full disk
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO):
            raise
        code = say(f"{name}: {error.filename or 'writing failed'}: {error.strerror}", 2)
        if error.filename is None:  # what standard output still holds cannot be written either
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except (MemoryError, RuntimeError) as error:
        if not (said := out_of_memory(error, name)):
            raise
        code = say(f"{name}: {said}", 2)
    sys.exit(code)


def say(message: str, code: int = 0) -> int:
    """To standard error. Where that cannot be written, as to a file on a full disk, training is worth more than the message."""
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)
    return code


def open_streams() -> None:
    """Where the caller has closed standard output or standard error, nothing hears what is written there."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:  # else the next file that is opened takes their numbers
        pass
    os.close(handle)
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def terminate(number: int, frame) -> None:
    raise Terminated


@contextmanager
def ctrl_c_later() -> Iterator[None]:
    """For the start and the end of workers, and while a library reads a file: Ctrl-C and SIGTERM wait until it is over.

    In the midst of a fork or a finaliser Python swallows what a handler raises; a worker that has not come to `begin_worker` dies
    with a traceback; a library takes what is raised within its call for a fault of the file.
    """
    if threading.current_thread() is not threading.main_thread():  # no other thread is interrupted, or may set a handler
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if callable(handler)}  # others raise nothing
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:  # also beside an error, which may be of workers that the signal has killed
            signal.raise_signal(came[0])


SMALLER = {
    "train": "a smaller --batch-size (with --accumulate for the same step), --checkpoint-activations or, for texts, --max-length",
    "predict": "a smaller --batch-size",
}


def out_of_memory(error: Exception, name: str) -> str | None:
    """What to say where there is not enough memory, of the machine or of a GPU; None: the error is another one."""
    text = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not re.search("out of memory|can't allocate memory|bad_alloc", text):
        return None
    figures = re.findall(
        r"ried to allocate [\d.,]+ \w+|GPU \d+ has a total capacity of [\d.]+ \w+ of which [\d.]+ \w+ is free", text
    )
    figures = ["t" + figure if figure.startswith("ried") else figure for figure in figures]
    return f"out of memory ({'; '.join(figures) or text[:150] or 'of the machine'}); try {SMALLER.get(name, 'a machine with more')}"


def look_up(table: dict[str, str], name: str, what: str):
    """The object that `table` names as "module:object" under `name`; an unknown name is answered with the known ones."""
    if name not in table:
        raise UserError(f"{what} {name!r:.80} is not known; known are {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
