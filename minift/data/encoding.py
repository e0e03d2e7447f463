"""A file to text: its bytes, its encoding, and what is no text at all."""

import codecs
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import BinaryIO

from minift.data.examples import check_characters
from minift.errors import UserError

# First bytes of files that are no text -> what they are and what to do
SIGNATURES = {
    b"\x1f\x8b": "compressed by gzip; decompress it first: gunzip",
    b"BZh91AY&SY": "compressed by bzip2; decompress it first: bunzip2",
    b"\xfd7zXZ\0": "compressed by xz; decompress it first: unxz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; decompress it first: unzstd",
    b"PK\x03\x04": "a zip archive, as Excel's .xlsx is; save the sheet as CSV (UTF-8), or unpack the archive",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Excel workbook (.xls); save the sheet as CSV (UTF-8)",
    b"PAR1\x15": "a Parquet file; write it as JSON lines or CSV first, in pandas with to_json(..., orient='records', lines=True)",
    b"ARROW1\0": "an Arrow file; write it as JSON lines or CSV first, in pandas with to_json(..., orient='records', lines=True)",
    b"SQLite format 3\0": "an SQLite database; export the table as CSV",
    b"%PDF-": "a PDF",
    b"version https://git-lfs": "a Git LFS pointer, not the data; fetch it: git lfs pull",
}

# A byte order mark -> the encoding that it stands for; UTF-32 before UTF-16, whose mark it begins with.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


# Where bytes are not of an encoding -> which one to try
ADVICE = {"utf-8": "most often --encoding latin-1 or --encoding cp1252", "cp1252": "perhaps --encoding utf-8 or latin-1"}

PIECE = 1 << 20  # bytes of a file that are decoded at a time


def read_bytes(path: str | Path) -> tuple[Path, bytes]:
    """(name for messages, content)"""
    name, file = open_bytes(path)
    with file:
        return name, read(name, file)


def read(path: Path, file: BinaryIO, size: int = -1) -> bytes:
    try:
        return file.read(size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def open_bytes(path: str | Path) -> tuple[Path, BinaryIO]:
    """(name for messages, the file, which can be read from its start again)

    Of standard input, and of a pipe, it is a copy: in memory up to 64 MB, then in a temporary file.
    """
    if str(path) == "-":
        if sys.stdin is None:
            raise UserError("standard input is closed")
        return Path("<stdin>"), copy_of(sys.stdin.buffer)
    check_characters(str(path), "the path of a file")
    try:
        file = Path(path).open("rb")  # noqa: SIM115
        if file.seekable():
            return Path(path), file
        with file:
            return Path(path), copy_of(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{str(path)!r}: a zero byte cannot stand in a name") from None


def copy_of(stream: BinaryIO) -> BinaryIO:
    copy = tempfile.SpooledTemporaryFile(max_size=64 << 20)  # noqa: SIM115
    shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return copy


class Text:
    """The lines of a file, decoded a piece at a time whenever they are gone through: the file may be larger than memory."""

    def __init__(self, path: str | Path, encoding: str, decided: list[str]):
        """decided: is told what to say of the encoding."""
        self.path, self.file = open_bytes(path)
        self.status = self.look()
        self.size = self.file.seek(0, io.SEEK_END)  # bytes
        self.file.seek(0)
        self.encoding = encoding_of(self.path, read(self.path, self.file, 64), encoding, decided)
        decided += doubts(encoding, self.pieces())

    def look(self) -> tuple | None:
        """What changes where someone writes the file; None: it is a copy of our own."""
        if isinstance(self.file, tempfile.SpooledTemporaryFile):
            return None
        status = os.fstat(self.file.fileno())
        return status.st_size, status.st_mtime_ns

    def pieces(self) -> Iterator[bytes]:
        at = 0
        while True:
            self.file.seek(at)  # another pass may have moved it
            if not (piece := read(self.path, self.file, PIECE)):
                break
            yield piece
            at += len(piece)
        if self.look() != self.status:
            raise UserError(f"{self.path}: someone writes to the file while it is read; make a copy first")

    def lines(self) -> Iterator[str]:
        """All lines without their ends; empty ones at the end of the file are left out."""
        parts, empty = [], 0
        for text in decoded(self.path, self.pieces(), self.encoding):
            first, *others = text.split("\n")
            parts.append(first)
            if not others:
                continue
            whole = ["".join(parts), *others[:-1]]
            parts = others[-1:]
            behind = next((i for i, line in enumerate(reversed(whole)) if line), len(whole))  # empty lines at the end of the piece
            if behind < len(whole):
                yield from repeat("", empty)
                yield from whole[: len(whole) - behind]
                empty = 0
            empty += behind
        if ended := "".join(parts):
            yield from repeat("", empty)
            yield ended

    def close(self) -> None:
        self.file.close()


def decode(path: Path, raw: bytes, encoding: str, decided: list[str]) -> str:
    """The decoded file, lines ended by \\n alone, without a byte order mark."""
    found = encoding_of(path, raw, encoding, decided)
    text = "".join(decoded(path, [raw], found))
    decided += doubts(encoding, [raw])
    return text


def encoding_of(path: Path, first: bytes, encoding: str, decided: list[str]) -> str:
    """The encoding of a file by its first bytes, else as given. Raises UserError for a file that is no text."""
    if found := packed(first):
        raise UserError(f"{path}: this is {found}")
    marked = next((name for mark, name in MARKS.items() if first.startswith(mark)), None)
    given = normal_encoding(encoding)
    if marked and not given.startswith(marked):
        decided.append(f"as {marked}, by its first bytes")
        return marked
    if given != "utf-8":
        decided.append(f"as {encoding}")
    if given in ("utf-16", "utf-32") and not marked:  # without a mark it is the machine's
        return f"{given}-{sys.byteorder[:1]}e"
    return encoding


def decoded(path: Path, pieces: Iterable[bytes], encoding: str) -> Iterator[str]:
    """The text of a file piece by piece, lines ended by \\n alone, without a byte order mark.

    Raises UserError, with line and column, for bytes that are not of this encoding, and for zero bytes.
    """
    decoder, ends = codecs.getincrementaldecoder(encoding)(), io.IncrementalNewlineDecoder(None, translate=True)
    lines = column = 0  # ends of lines, and bytes after the last of them, in what has been decoded
    ended, begun, order = 0, False, None  # ends of lines in the text; whether there is any; what the first zero byte tells
    for raw, last in marked_last(pieces):
        waiting = decoder.getstate()[0] + raw  # the first bytes of a character were kept from the piece before
        order = order or ("utf-16-be" if waiting[:1] == b"\0" else "utf-16-le" if waiting[1:2] == b"\0" else "none")
        try:
            text = decoder.decode(raw, last)
        except UnicodeError as error:
            at = getattr(error, "start", 0)
            line, above = lines + waiting.count(b"\n", 0, at) + 1, waiting.rfind(b"\n", 0, at)
            place = f"{path}:{line}:{at - above if above >= 0 else column + at + 1}"
            advice = ADVICE.get(normal_encoding(encoding), "perhaps --encoding utf-8")
            byte = waiting[at : at + 1].hex()
            raise UserError(f"{place}: byte 0x{byte} is not {encoding}; name the file's encoding, {advice}") from None
        done = waiting[: len(waiting) - len(decoder.getstate()[0])]
        above = done.rfind(b"\n")
        lines, column = lines + done.count(b"\n"), len(done) - above - 1 if above >= 0 else column + len(done)
        if "\0" in text:
            advice = f"its first bytes look like --encoding {order}" if order != "none" else "see what made it"
            raise UserError(f"{path}:{ended + text.count(chr(10), 0, text.index(chr(0))) + 1}: holds zero bytes, so it is no "
                            f"{encoding} text; {advice}")  # fmt: skip
        ended += text.count("\n")
        if not begun:
            begun, text = bool(text), text.removeprefix("\ufeff")
        yield ends.decode(text, last)


def marked_last(pieces: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """(piece, whether it is the last one); one that is empty where there is none"""
    before = b""
    for piece in pieces:
        if before:
            yield before, False
        before = piece
    yield before, True


def doubts(encoding: str, pieces: Iterable[bytes]) -> list[str]:
    """What to say of an encoding that knows every byte, where the file is valid UTF-8 with more than ASCII in it."""
    if normal_encoding(encoding) not in ("iso8859-1", "cp1252"):
        return []
    decoder, ascii_only = codecs.getincrementaldecoder("utf-8")(), True
    try:
        for raw, last in marked_last(pieces):
            ascii_only = ascii_only and raw.isascii()
            decoder.decode(raw, last)
    except UnicodeError:
        return []
    return [] if ascii_only else [f"it would also be valid UTF-8: check that --encoding {encoding} is right"]


def normal_encoding(encoding: str) -> str:
    """The library's own name of an encoding; utf_8 and UTF8 are utf-8."""
    try:
        "".encode(encoding)  # refuses an encoding that is not one of text, as base64
        return codecs.lookup(encoding).name.removesuffix("-sig")
    except (LookupError, UnicodeError, ValueError):
        raise UserError(f"--encoding {encoding}: no encoding of this name; usual ones are utf-8, latin-1, cp1252, utf-16") from None


def not_text(path: str | Path) -> str | None:
    """The error for a file that is not there, or whose first bytes are not those of a text."""
    if not os.path.exists(path):
        return f"{path}: no such file"
    if os.path.isdir(path):
        return f"{path}: a directory; a file is expected"
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            first = file.read(32)
    except OSError:  # said when it is read
        return None
    found = packed(first)
    return found and f"{path}: this is {found}"


def packed(raw: bytes) -> str | None:
    """What a file is that begins with these bytes, and what to do; None: it may be text."""
    return next((what for signature, what in SIGNATURES.items() if raw.startswith(signature)), None)


def read_files(files: list[Path], encoding: str, decided: list[str]) -> Iterator[str]:
    """The text of each file, without the ends of lines around it. What is to be told of them is added to `decided`, once."""
    for file in files:
        said: list[str] = []
        name, raw = read_bytes(file)
        text = decode(name, raw, encoding, said).strip("\n")
        decided += [one for one in said if one not in decided]
        yield text
