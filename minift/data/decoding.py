"""From files to pixels: every kind of picture in RGB, upright; and whether all of them can be decoded, before training starts."""

import errno
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageFile

from minift.bar import each
from minift.data.images import Images
from minift.data.stored import user_cache
from minift.errors import UserError, brief, ctrl_c_later, one_line

NARROWEST = 50  # longer side by shorter one: resized by its shorter side, such a picture takes 700 MB
# What the extensions of data/images.py promise, whatever a file's name is. Pillow knows more, and for EPS it starts Ghostscript.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
MOST_NOTES = 100_000_000  # bytes of the notes of sound files; beyond, the older half is forgotten
LISTED = 50  # bad files that an error names one by one

# New processes by fork where that is safe: torch and torchvision, seconds of import, need not be loaded again in each.
START = "fork" if sys.platform == "linux" else "spawn"


class BadImage(UserError):
    """(path, problem): a file that cannot be decoded."""

    def __str__(self) -> str:
        return one_line(f"{self.args[0]}: {self.args[1]}; fix the file or take it out")


class BadImages(UserError):
    """What is wrong, and below it a line for each file."""

    def __str__(self) -> str:
        return "\n".join(map(one_line, self.args))


UPRIGHT = {  # EXIF orientation -> what turns the stored picture upright, as in PIL.ImageOps.exif_transpose
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(path: str | Path) -> Image.Image:
    """The whole picture, upright, in RGB; of an animation the first frame.

    Transparency is laid on white: what is cut out was mostly made for a white page, and the colour under it is arbitrary, often
    black. 16-bit grey is scaled by the 16-bit range (65535 becomes 255), where PIL alone would clip it. Colour profiles are not
    applied, as in torchvision. Decoding is never scaled (PIL's draft mode), which would change pixels.

    Raises BadImage, one line, for what cannot be decoded whole, and for more than PIL.Image.MAX_IMAGE_PIXELS pixels.
    Tests: tests/data/test_decoding.py, test_kinds_of_pixels, test_orientation, test_bad_files.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise BadImage(path, "a file is expected, and this is a directory, a pipe or a device")
    # Another library's import may have set it: an image cut short would come out half grey.
    truncated, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken metadata is no concern of the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=known_formats()) as image:
                image.load()
                turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
                image = to_rgb(image)
                return image if turn is None else image.transpose(turn)
    except Exception as error:  # decoders raise whatever a broken file leads them to: SyntaxError, struct.error, ValueError
        raise BadImage(path, problem_of(path, error)) from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated


def known_formats() -> list[str]:
    """Those of FORMATS that this Pillow can read."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return to_eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def to_eight_bits(image: Image.Image) -> Image.Image:
    values, top = np.asarray(image).astype(np.float64), 255 if image.mode == "F" else 65535
    low, high = values.min(), values.max()
    # Neither the scale of wider integers nor that of fractions (0 to 1? 0 to 255?) is written in the file.
    if not (low >= 0 and high <= top) or (image.mode == "F" and high <= 1):
        raise ValueError(f"grey values from {low:g} to {high:g}, where 0 to {top} is read; save it with 8 or 16 bits")
    values[values == image.info.get("transparency", -1)] = top  # on white
    return Image.fromarray(np.rint(values * 255 / top).astype(np.uint8))


def problem_of(path: Path, error: Exception) -> str:
    """A decoder's exception in the user's words."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        pixels = int(re.search(r"\d+", str(error))[0])
        return f"{pixels:,} pixels, more than the {Image.MAX_IMAGE_PIXELS:,} that are safe to decode; make it smaller"
    if isinstance(error, OSError) and error.errno:
        return f"cannot be read ({error.strerror})"
    if path.stat().st_size == 0:
        return "zero bytes"
    if isinstance(error, PIL.UnidentifiedImageError):
        with path.open("rb") as file:
            kinds = ", ".join(known_formats())
            return f"no image of a format that is read ({kinds}; Pillow {PIL.__version__}); it begins with {file.read(12)!r}"
    why = brief(error) or type(error).__name__
    return f"{'cut short' if 'truncated' in why.lower() else 'cannot be decoded'} ({why})"


# ---- are all of them sound? ----


def verdict(path: Path) -> str | None:
    """What is wrong with a file; None: it is sound."""
    try:
        image = open_image(path)
    except BadImage as error:
        return error.args[1]
    if max(image.size) > NARROWEST * min(image.size):
        return f"{image.width:,} x {image.height:,} pixels, too narrow: resized, its longer side would be enormous; crop it"
    return "cut short (the JPEG ends before its last row)" if jpeg_ends_early(path, image) else None


def jpeg_ends_early(path: Path, image: Image.Image) -> bool:
    """Whether a JPEG that PIL decodes without a word lacks its end.

    PIL takes a tail of zero bytes, as a broken download leaves it, for pixels; and where the end marker follows too early, the
    rest of the picture comes out as mid-grey. The first lacks the marker. In the second, bytes put before the marker change the
    picture, which they cannot after the last pixel; that costs two decodings, done only where a corner is mid-grey.
    Test: test_jpegs_that_end_early.
    """
    data = path.read_bytes()
    if not data.startswith(b"\xff\xd8"):
        return False
    end = end_of_jpeg(data)
    if end is None:
        return True
    right, bottom = image.width - 1, image.height - 1
    if all(image.getpixel(corner) != (128, 128, 128) for corner in ((0, 0), (right, 0), (0, bottom), (right, bottom))):
        return False
    padded = data[:end] + bytes(4096) + b"\xff\xd9"
    with Image.open(BytesIO(data), formats=["JPEG"]) as plain, Image.open(BytesIO(padded), formats=["JPEG"]) as other:
        return plain.tobytes() != other.tobytes()


def end_of_jpeg(data: bytes) -> int | None:
    """Where the end marker (EOI) of the first picture stands, by the walk over segments and scans of ITU T.81, annex B."""
    at = 2
    marker = re.compile(rb"\xff[^\x00\xff]")
    while found := marker.search(data, at):
        code, at = found[0][1], found.end()
        if code == 0xD9:
            return found.start()
        if code != 0x01 and not 0xD0 <= code <= 0xD7:  # these stand alone; every other begins a segment that tells its length
            at += int.from_bytes(data[at : at + 2], "big")
    return None


def check_images(files: list[Path], workers: int, cache: Path | None) -> list[tuple[Path, str]]:
    """(file, what is wrong with it) for every file that cannot be decoded whole, in the order of `files`.

    workers: processes that decode; 0: this one. cache: a file in which sound files are noted, a line each, by path, size and time
    of change, so that a second run need not decode them; it may be deleted at any time, and one that cannot be read or written
    stops no run. Bad files are not noted: they are looked at again. Prints one line; shows how far it has come.
    Tests: test_sound_files_are_decoded_once, test_ctrl_c_leaves_no_process.
    """
    files = list(dict.fromkeys(files))
    notes = {file: note_of(file) for file in files}
    known = noted(cache, set(notes.values()))
    todo = [file for file in files if notes[file] is None or notes[file] not in known]
    began, bad, sound_ones = time.perf_counter(), [], []
    unkept = ""
    try:
        for file, problem in zip(todo, each(verdicts(todo, workers), "images", len(todo), "file"), strict=True):
            bad += [(file, problem)] if problem else []
            sound_ones += [notes[file]] if not problem and notes[file] else []
    finally:  # what an interrupted run has seen is kept too
        try:
            if cache and sound_ones:
                cache.parent.mkdir(parents=True, exist_ok=True)
                if cache.is_fifo():  # it would be waited for
                    raise OSError(errno.EINVAL, "this is a pipe")
                with cache.open("a", encoding="ascii") as lines:
                    lines.write("".join("\n" + note for note in sound_ones))
                forget_old(cache)
        except OSError as error:
            unkept = f"; not noted for the next run: {cache}: {error.strerror}"
    rate = len(todo) / max(time.perf_counter() - began, 1e-9)
    decoded, passed = f"; {len(todo):,} decoded, {rate:,.0f} files/s", f"; {len(known):,} known to be sound"
    line = f"images {len(files):,} files{decoded * bool(todo)}{passed * bool(known)}{f'; {len(bad):,} bad' * bool(bad)}{unkept}"
    print(line, file=sys.stderr)  # predictions have stdout to themselves
    return bad


def verdicts(files: list[Path], workers: int) -> Iterator[str | None]:
    workers = min(workers, len(files))
    if workers < 1:
        yield from map(verdict, files)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(START), initializer=begin_worker, initargs=(0, False))
    try:
        with ctrl_c_later():
            found = pool.map(verdict, files, chunksize=16)
        yield from found
    except BrokenProcessPool:
        raise UserError(
            f"a process that decoded images was killed, most often for lack of memory; {workers} ran at once: use fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def begin_worker(worker: int = 0, patient: bool = True) -> None:
    """For a worker: signals reach all processes of a terminal or a job, and the parent is the one that ends the others.

    Ctrl-C is ignored. patient: the first SIGTERM is ignored too, so that a batch on its way still arrives; torch and
    multiprocessing send another to a worker that hangs. A worker whose parent is gone, even by kill -9, ends itself.
    """
    came: list[int] = []

    def terminate(number: int, frame) -> None:
        if came:
            os._exit(143)
        came.append(number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate if patient else signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def note_of(file: Path) -> str | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return json.dumps([f"minift 1, Pillow {PIL.__version__}", os.path.abspath(file), status.st_size, status.st_mtime_ns])


def noted(cache: Path | None, wanted: set[str]) -> set[str]:
    """Those of the wanted lines that the cache file holds; a broken line equals none."""
    with suppress(OSError):
        if cache and cache.is_file():  # a pipe would be waited for
            with cache.open(encoding="ascii", errors="replace") as lines:
                return {line for line in map(str.rstrip, lines) if line in wanted}
    return set()


def forget_old(cache: Path) -> None:
    """Drop the older half of notes that have grown beyond MOST_NOTES bytes. The new file takes the place of the old one at once."""
    if cache.stat().st_size <= MOST_NOTES:
        return
    notes = list(dict.fromkeys(cache.read_text(encoding="ascii", errors="replace").split("\n")[::-1]))[::-1]  # the last of each
    fresh = cache.with_name(f"{cache.name}.{os.getpid()}")
    fresh.write_text("\n".join(notes[len(notes) // 2 :]), encoding="ascii", errors="replace")
    fresh.replace(cache)


def processes(given: int | None) -> int:
    """How many read images: as given, else one for each core that this process may use, at most 8."""
    if given is not None:
        return given
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def cache_file() -> Path:
    """Where sound files are noted: of the user, not of a run, since many runs read the same pictures."""
    return user_cache() / "images.jsonl"


def sound(images: Images, workers: int, skip_bad: bool) -> Images:
    """The images, all of which can be decoded. skip_bad: bad ones are left out and said, else they are an error that lists them.

    Raises one UserError: first what to do, then a line a file; also where the last image of a class would be left out. Of files
    that were given one by one, as to predict(), the first bad one is the error, and nothing is noted or printed.
    Tests: test_bad_files_are_listed_or_left_out, test_files_given_one_by_one.
    """
    if images.given:
        for file, problem in zip(images.files, map(verdict, images.files), strict=True):
            if problem:
                raise BadImage(file, problem)
        return images
    bad = dict(check_images(images.files, workers, cache_file()))
    if not bad:
        return images
    listed = [f"  {file}: {problem}" for file, problem in bad.items()]
    more = [f"  and {len(listed) - LISTED:,} more"] if listed[LISTED:] else []
    if not skip_bad:
        first = f"{images.path}: {len(bad):,} of {len(images):,} images cannot be read; delete them or add --skip-bad-images"
        raise BadImages(first, *listed[:LISTED], *more)
    kept = images.take(np.array([i for i, file in enumerate(images.files) if file not in bad], dtype=np.int64))
    emptied = sorted(set(images.labels or ()) - set(kept.labels or ()))
    if emptied or not len(kept):
        what = f" of the class {', '.join(emptied)}" if emptied else ""
        first = f"{images.path}: {len(bad):,} of {len(images):,} images cannot be read and none is left{what}; put sound ones there"
        raise BadImages(first, *listed[:LISTED], *more)
    shown = ", ".join(f"{file} ({problem})" for file, problem in list(bad.items())[:3])
    said = f"{len(bad):,} bad images left out: {shown}" + (f", and {len(bad) - 3:,} more" if len(bad) > 3 else "")
    return replace(kept, decided=[*images.decided, said])
