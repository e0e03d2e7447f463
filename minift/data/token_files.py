"""The token ids of a large file, kept from run to run, so that only the first start tokenises it.

The rows of a split that lie on disk (stored.py) have a file in the directory `tokens` of the user's cache ($XDG_CACHE_HOME, else
~/.cache, and in it `minift`). It holds, one behind the other,

    tokens   (T) ids of all rows, each in as many bytes as the vocabulary needs; of pairs each followed by its token type
    lengths  (N) tokens of each row
    uncut    (N) tokens of each row before it was cut; left out where no row was
    T and whether a row was cut, then the sha256 of all that

The name is a hash of all that decides the ids: the rows as they were read, the tokenizer and the version of its library, the
longest length. A file is written under another name and gets its own when it is whole, so that processes may write the same one at
once. Its tokens are mapped into memory: the system reads them as they are needed, and may drop them again.

Axes: N rows, T tokens of all rows. Proved by tests/data/test_token_files.py.
"""

import contextlib
import hashlib
import json
import os
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Tokenizer

from minift.data.stored import user_cache
from minift.data.tokenising import CHUNK, Ragged, encode, encoded_chunks, starts_of

FORMAT = 1  # of the files: a change of what stands in them changes their names
END = struct.Struct("<QQ32s")  # T, whether a row was cut, sha256
UNUSED_DAYS = 30  # after which a file is deleted when another one is written


def tokenised(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
    filler: int,
    decided: list[str],
) -> tuple[Ragged, Ragged | None, np.ndarray]:
    """What `encode` gives, from a file that an earlier start has left, else from one that is written now.

    decided: is told which of these it was. Where no file can be written the ids are kept in memory, and that is told too.
    """
    greatest = max(filler, *tokenizer.get_vocab().values())
    item = np.dtype([("id", np.min_scalar_type(greatest)), *[("type", "u1")] * (pairs is not None)])
    place = user_cache() / "tokens" / key(tokenizer, texts, pairs, max_length, filler)
    rows = f"token ids of {len(texts):,} rows"
    found = opened(place, item, len(texts))
    if found:
        decided.append(f"{rows} as an earlier start has left them, in {place.parent}")
        with contextlib.suppress(OSError):
            os.utime(place)
        return found
    try:
        damaged = place.exists()
        write(place, item, len(texts), encoded_chunks(tokenizer, texts, pairs, max_length, filler))
        decided.append(f"{rows} {'were damaged, made anew' if damaged else 'kept for the next start'} in {place.parent}")
    except OSError as error:
        decided.append(f"{rows} not kept for the next start: {place.parent}: {error.strerror}")
    return opened(place, item, len(texts)) or encode(tokenizer, texts, pairs, max_length, filler)


def key(tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int, filler: int) -> str:
    settings = [FORMAT, tokenizers.__version__, tokenizer.to_str(), max_length, filler, pairs is not None]
    digest = hashlib.sha256(json.dumps(settings).encode())
    rows = iter(texts if pairs is None else zip(texts, pairs, strict=True))
    while chunk := list(islice(rows, CHUNK)):
        digest.update(json.dumps(chunk).encode())
    return digest.hexdigest()


def opened(place: Path, item: np.dtype, N: int) -> tuple[Ragged, Ragged | None, np.ndarray] | None:
    """What such a file holds; None: there is none, or it is not as it was written."""
    if not place.is_file():  # a pipe would be waited for
        return None
    try:
        with place.open("rb") as file:
            size = file.seek(-END.size, os.SEEK_END)
            T, cut, digest = END.unpack(file.read())
            if size != T * item.itemsize + N * 4 * (1 + cut):
                return None
            file.seek(0)
            if hash_of(file, size, T, cut) != digest:
                return None
            file.seek(T * item.itemsize)
            lengths = np.fromfile(file, "<i4", N)
            before = np.fromfile(file, "<i4", N) if cut else lengths
        tokens = np.memmap(place, item, "r", shape=T)
    except OSError:
        return None
    starts = starts_of(lengths)
    return Ragged(tokens["id"], starts), Ragged(tokens["type"], starts) if "type" in item.names else None, before


def hash_of(file, size: int, T: int, cut: int) -> bytes:
    digest = hashlib.sha256(struct.pack("<QQ", T, cut))
    while size and (piece := file.read(min(size, 1 << 20))):
        digest.update(piece)
        size -= len(piece)
    return digest.digest()


def write(place: Path, item: np.dtype, N: int, chunks: Iterator[tuple[np.ndarray, ...]]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    delete_unused(place.parent)
    handle, name = tempfile.mkstemp(dir=place.parent, prefix="unfinished-")
    try:
        with open(handle, "w+b") as file:
            T, row, lengths = 0, 0, np.empty((2, N), "<i4")  # of each row, and before it was cut
            for ids, types, *both in chunks:
                tokens = np.empty(len(ids), item)
                tokens["id"] = ids
                if len(types):
                    tokens["type"] = types
                file.write(tokens)
                T += len(tokens)
                lengths[:, row : row + len(both[0])] = both
                row += len(both[0])
            cut = int((lengths[0] != lengths[1]).any())
            file.write(lengths[: 1 + cut])
            size = file.tell()
            file.seek(0)  # the hash is made of what can be read, up to where the end is then written
            file.write(END.pack(T, cut, hash_of(file, size, T, cut)))
        os.replace(name, place)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def delete_unused(directory: Path) -> None:
    for file in directory.iterdir():
        with contextlib.suppress(OSError):
            if file.stat().st_mtime < time.time() - UNUSED_DAYS * 86400:
                file.unlink()
