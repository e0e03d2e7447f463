"""A file to text: its bytes, its encoding, and what is no text at all."""

import codecs
import os
import sys
from pathlib import Path

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


def read_bytes(path: str | Path) -> tuple[Path, bytes]:
    """(name for messages, content)"""
    if str(path) == "-":
        if sys.stdin is None:
            raise UserError("standard input is closed")
        return Path("<stdin>"), sys.stdin.buffer.read()
    check_characters(str(path), "the path of a file")
    try:
        return Path(path), Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{str(path)!r}: a zero byte cannot stand in a name") from None


def decode(path: Path, raw: bytes, encoding: str, decided: list[str]) -> str:
    """The decoded file, lines ended by \\n alone, without a byte order mark."""
    if found := packed(raw):
        raise UserError(f"{path}: this is {found}")
    marked = next((name for mark, name in MARKS.items() if raw.startswith(mark)), None)
    given = normal_encoding(encoding)
    if marked and not given.startswith(marked):
        decided.append(f"as {marked}, by its first bytes")
        encoding = marked
    elif given != "utf-8":
        decided.append(f"as {encoding}")
    try:
        text = raw.decode(encoding)
    except UnicodeError as error:
        at = getattr(error, "start", 0)
        line = raw.count(b"\n", 0, at) + 1
        column = at - (raw.rfind(b"\n", 0, at) + 1) + 1
        advice = {"utf-8": "most often --encoding latin-1 or --encoding cp1252", "cp1252": "perhaps --encoding utf-8 or latin-1"}
        raise UserError(f"{path}:{line}:{column}: byte 0x{raw[at : at + 1].hex()} is not {encoding}; name the file's encoding, "
                        f"{advice.get(normal_encoding(encoding), 'perhaps --encoding utf-8')}") from None  # fmt: skip
    if "\0" in text:
        order = "utf-16-be" if raw[:1] == b"\0" else "utf-16-le" if raw[1:2] == b"\0" else None
        advice = f"its first bytes look like --encoding {order}" if order else "see what made it"
        raise UserError(f"{path}:{text.count(chr(10), 0, text.index(chr(0))) + 1}: holds zero bytes, so it is no {encoding} "
                        f"text; {advice}")  # fmt: skip
    if given in ("iso8859-1", "cp1252") and not raw.isascii() and is_utf8(raw):
        decided.append(f"it would also be valid UTF-8: check that --encoding {encoding} is right")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def normal_encoding(encoding: str) -> str:
    """The library's own name of an encoding; utf_8 and UTF8 are utf-8."""
    try:
        "".encode(encoding)  # refuses an encoding that is not one of text, as base64
        return codecs.lookup(encoding).name.removesuffix("-sig")
    except (LookupError, UnicodeError, ValueError):
        raise UserError(f"--encoding {encoding}: no encoding of this name; usual ones are utf-8, latin-1, cp1252, utf-16") from None


def is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeError:
        return False
    return True


def not_text(path: str | Path) -> str | None:
    """The error for a file whose first bytes are those of no text."""
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


def read_files(files: list[Path], encoding: str, decided: list[str]) -> list[str]:
    """The text of each file, without the ends of lines around it. What is to be told of them is added to `decided`, once."""
    texts = []
    for file in files:
        said: list[str] = []
        name, raw = read_bytes(file)
        texts.append(decode(name, raw, encoding, said).strip("\n"))
        decided += [one for one in said if one not in decided]
    return texts
