"""Mistakes of the user's: one line on stderr, exit code 2. A bug stays a traceback."""

import errno
import importlib
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """What is wrong, where (file, line, column), what to do: all in one line."""


class Diverged(UserError):
    """Training whose loss or weights are no longer finite."""


def command(main: Callable[[list[str]], int | None], name: str) -> None:
    """Run a command line's `main` and leave the process: 0 or what main returns, 2 after a mistake, 130 after Ctrl-C."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a text may hold what the terminal's encoding cannot show
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except UserError as error:
        said = str(error)
        print(said if said.startswith(f"{name}: ") else f"{name}: {said}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as stop:
        print(f"\n{name}: stopped{f', {stop}' if stop.args else ''}", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of the pipe has seen enough, as in `... | head`
        drop_output()
        code = 141
    except OSError as error:  # a directory that may not be written; a full disk, whose error names no file
        if error.filename is None and error.errno not in FULL:
            raise
        print(f"{name}: {error.filename or 'writing failed'}: {error.strerror}", file=sys.stderr)
        drop_output()  # which may be what could not be written
        code = 2
    sys.exit(code)


FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def drop_output() -> None:
    """So that Python, when it ends, does not fail to write what is still in the buffer."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def look_up(table: dict[str, str], name: str, what: str):
    """The object that `table` names as "module:object" under `name`; an unknown name is answered with the known ones."""
    if name not in table:
        raise UserError(f"{what} {name!r} is not known; known are {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
