"""Every kind of picture comes out right; every broken file is found, once, and said."""

import io
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageFile, ImageOps
from processes import assert_stops_cleanly

from minift.data import decoding
from minift.data.decoding import BadImage, check_images, end_of_jpeg, jpeg_ends_early, open_image, sound
from minift.data.images import read_images
from minift.errors import UserError, ctrl_c_later

SIDE = 16
RED, GREEN, BLUE, YELLOW, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 255, 255)
COLOURS = [RED, GREEN, BLUE, YELLOW]


def quarters(values: list, dtype=np.uint8) -> np.ndarray:
    """(32, 32, ...): top left, top right, bottom left, bottom right."""
    a, b, c, d = (np.broadcast_to(np.array(v, dtype), (SIDE, SIDE, *np.shape(v))) for v in values)
    return np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)])


def seen(path: Path) -> list[tuple[int, int, int]]:
    """The colours in the midst of the quarters."""
    image = open_image(path)
    assert image.mode == "RGB" and image.size == (2 * SIDE, 2 * SIDE)
    return [image.getpixel((x, y)) for y in (8, 24) for x in (8, 24)]


def grey(*values: int) -> list[tuple[int, int, int]]:
    return [(v, v, v) for v in values]


RGB = Image.fromarray(quarters(COLOURS))
PALETTE = RGB.quantize(4)
INDEX = [PALETTE.getpixel((x, y)) for y in (8, 24) for x in (8, 24)]
ALPHAS = bytes(dict(zip(INDEX, (255, 0, 128, 255), strict=True))[i] for i in range(4))
RGBA = Image.fromarray(quarters([(*RED, 255), (0, 0, 0, 0), (*BLUE, 128), (*YELLOW, 255)]))
ON_WHITE = [RED, WHITE, (127, 127, 255), YELLOW]
L = Image.fromarray(quarters([0, 100, 200, 255]))
LA = Image.merge("LA", (L, Image.fromarray(quarters([0, 255, 128, 255]))))
WIDE = quarters([0, 257, 32768, 65535], np.uint16)
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", RGB.size, "black")]}
LAB = Image.merge("LAB", [Image.fromarray(quarters(v)) for v in ([0, 255, 138, 249], [128, 128, 209, 112], [128, 128, 198, 221])])
CMYK = Image.merge("CMYK", (*(ImageOps.invert(band) for band in RGB.split()), Image.new("L", RGB.size)))

# What is stored -> (picture, extension, options of PIL's save, what is seen, tolerance)
KINDS = {
    "RGB": (RGB, "png", {}, COLOURS, 0),
    "JPEG": (RGB, "jpg", {"quality": 95}, COLOURS, 3),
    "JPEG, progressive": (RGB, "jpg", {"quality": 95, "progressive": True}, COLOURS, 3),
    "BMP": (RGB, "bmp", {}, COLOURS, 0),
    "one colour of RGB transparent": (RGB, "png", {"transparency": GREEN}, [RED, WHITE, BLUE, YELLOW], 0),
    "palette": (PALETTE, "png", {}, COLOURS, 0),
    "palette, one transparent": (PALETTE, "png", {"transparency": INDEX[1]}, [RED, WHITE, BLUE, YELLOW], 0),
    "palette, alphas": (PALETTE, "png", {"transparency": ALPHAS}, ON_WHITE, 1),
    "GIF": (PALETTE, "gif", {}, COLOURS, 0),
    "GIF, one transparent": (PALETTE, "gif", {"transparency": INDEX[1]}, [RED, WHITE, BLUE, YELLOW], 0),
    "grey": (L, "png", {}, grey(0, 100, 200, 255), 0),
    "grey JPEG": (L, "jpg", {"quality": 95}, grey(0, 100, 200, 255), 3),
    "one grey transparent": (L, "png", {"transparency": 0}, grey(255, 100, 200, 255), 0),
    "grey and alpha": (LA, "png", {}, grey(255, 100, 227, 255), 1),
    "RGBA over black": (RGBA, "png", {}, ON_WHITE, 1),
    "RGBA in WebP": (RGBA, "webp", {"lossless": True}, ON_WHITE, 1),
    "RGBA in TIFF": (RGBA, "tif", {}, ON_WHITE, 1),
    "CMYK": (CMYK, "tif", {}, COLOURS, 0),
    "CMYK JPEG": (CMYK, "jpg", {"quality": 95}, COLOURS, 6),
    "16-bit grey PNG": (Image.fromarray(WIDE), "png", {}, grey(0, 1, 128, 255), 0),
    "16-bit grey PNG, one transparent": (Image.fromarray(WIDE), "png", {"transparency": 257}, grey(0, 255, 128, 255), 0),
    "16-bit grey TIFF": (Image.fromarray(WIDE), "tif", {}, grey(0, 1, 128, 255), 0),
    "16-bit grey PGM": (Image.fromarray(WIDE), "pgm", {}, grey(0, 1, 128, 255), 0),
    "32-bit grey within 16": (Image.fromarray(WIDE.astype(np.int32)), "tif", {}, grey(0, 1, 128, 255), 0),
    "floating point": (Image.fromarray(quarters([0, 99.6, 200, 255], np.float32)), "tif", {}, grey(0, 100, 200, 255), 0),
    "1 bit": (Image.fromarray(quarters([0, 1, 1, 0], bool)), "png", {}, grey(0, 255, 255, 0), 0),
    "YCbCr": (RGB.convert("YCbCr"), "tif", {}, COLOURS, 3),
    "LAB": (LAB, "tif", {}, [(0, 0, 0), WHITE, RED, YELLOW], 15),
    "animated GIF": (RGB, "gif", FRAMES, COLOURS, 0),
    "animated WebP": (RGB, "webp", {"lossless": True, **FRAMES}, COLOURS, 0),
    "animated PNG": (RGB, "png", FRAMES, COLOURS, 0),
    "TIFF of two pages": (RGB, "tif", FRAMES, COLOURS, 0),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_pixels(tmp_path, kind):
    image, extension, options, wanted, tolerance = KINDS[kind]
    image.save(tmp_path / f"a.{extension}", **options)
    assert np.abs(np.array(seen(tmp_path / f"a.{extension}")) - wanted).max() <= tolerance


def test_ycck_as_photoshop_writes_it(tmp_path):
    """Adobe's marker says 2: the first three planes are YCbCr of the inverted inks; PIL writes inks inverted and the marker 0."""
    negative = ImageOps.invert(RGB).convert("YCbCr").split()
    image = Image.merge("CMYK", (*(ImageOps.invert(band) for band in negative), Image.new("L", RGB.size)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    data = bytearray(buffer.getvalue())
    data[data.index(b"Adobe") + 11] = 2
    (tmp_path / "a.jpg").write_bytes(data)
    assert np.abs(np.array(seen(tmp_path / "a.jpg")) - COLOURS).max() <= 8


@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation, extension):
    upright = np.array([[[10 * x + 40 * y] * 3 for x in range(5)] for y in range(3)], dtype=np.uint8)
    upright = upright.repeat(8, 0).repeat(8, 1)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif, path = Image.Exif(), tmp_path / f"a.{extension}"
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=100)
    image = np.asarray(open_image(path)).astype(int)
    assert image.shape == upright.shape and np.abs(image - upright).max() <= (2 if extension == "jpg" else 0)
    assert np.array_equal(image, ImageOps.exif_transpose(Image.open(path)))


def noise(size: tuple[int, int] = (160, 120), **options) -> bytes:
    """A JPEG full of detail."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_bad_files(tmp_path, monkeypatch):
    def problem(data: bytes, name: str = "a.jpg") -> str:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadImage) as error:
            open_image(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(error.value)
        assert decoding.verdict(tmp_path / name) == error.value.args[1]
        return error.value.args[1]

    # as another library may have left it
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole, png = noise(), io.BytesIO()
    RGB.save(png, "PNG")
    assert problem(b"") == "zero bytes"
    formats = ", ".join(decoding.known_formats())
    wanted = f"no image of a format that is read ({formats}; Pillow {PIL.__version__}); it begins with b'<html>\\nnot f'"
    assert problem(b"<html>\nnot found") == wanted
    for cut in (len(whole) // 2, len(whole) - 2, len(whole) - 1):
        assert problem(whole[:cut]).startswith("cut short (")
    assert problem(noise(progressive=True)[:-100]).startswith("cut short (")
    assert problem(png.getvalue()[:-40], "a.png").startswith("cut short (")
    assert problem(png.getvalue().replace(b"IDATx", b"IDAT?"), "a.png").startswith("cannot be decoded (")
    Image.fromarray(WIDE.astype(np.int32) * 2).save(tmp_path / "a.tif")
    assert "grey values from 0 to 131070, where 0 to 65535 is read" in problem((tmp_path / "a.tif").read_bytes(), "a.tif")
    Image.fromarray(WIDE.astype(np.float32) / 65535).save(tmp_path / "a.tif")
    assert "grey values from 0 to 1, where 0 to 255 is read" in problem((tmp_path / "a.tif").read_bytes(), "a.tif")
    for limit in (19_000, 9_000):  # above it PIL warns, above twice of it PIL refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert problem(whole) == f"19,200 pixels, more than the {limit:,} that are safe to decode; make it smaller"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 19_200)
    assert open_image(tmp_path / "a.jpg").size == (160, 120)
    assert decoding.verdict(tmp_path / "gone.jpg") == "cannot be read (No such file or directory)"


def test_formats_that_are_not_read(tmp_path, monkeypatch):
    """Pillow goes by content: for EPS under any name it starts Ghostscript where that is installed."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments, **options: started.append(arguments))
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "EPS"
    with pytest.raises(BadImage, match=r"no image of a format that is read \(JPEG, PNG"):
        open_image(tmp_path / "a.jpg")
    assert not started
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tga")
    assert "no image of a format that is read" in decoding.verdict(tmp_path / "a.tga")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.gif", "PNG")  # one of the formats under the name of another
    assert open_image(tmp_path / "b.gif").size == (8, 8)


def test_settings_of_pillow_are_put_back(tmp_path, monkeypatch):
    (tmp_path / "whole.jpg").write_bytes(noise())
    (tmp_path / "cut.jpg").write_bytes(noise()[:-200])
    for setting in (True, False):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", setting)
        open_image(tmp_path / "whole.jpg")
        with pytest.raises(BadImage, match="cut short"):
            open_image(tmp_path / "cut.jpg")
        assert ImageFile.LOAD_TRUNCATED_IMAGES is setting


def test_processes_for_the_cores_there_are(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert (decoding.processes(None), decoding.processes(0), decoding.processes(12)) == (2, 0, 12)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(40)))
    assert decoding.processes(None) == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    assert decoding.processes(None) == 8


def test_unreadable_file(tmp_path, monkeypatch):
    def refuse(path, formats):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    assert decoding.verdict(tmp_path / "a.jpg") == "cannot be read (Permission denied)"


def test_jpegs_that_end_early(tmp_path):
    def is_early(data: bytes) -> bool:
        (tmp_path / "a.jpg").write_bytes(data)
        return jpeg_ends_early(tmp_path / "a.jpg", open_image(tmp_path / "a.jpg"))

    end = b"\xff\xd9"
    for options in ({}, {"restart_marker_blocks": 3}, {"subsampling": 0}):
        whole = noise(**options)
        assert end_of_jpeg(whole) == len(whole) - 2
        for share in (0.3, 0.6, 0.9):  # PIL decodes it without a word, the rest grey
            assert is_early(whole[: int(len(whole) * share)] + end)
        assert not is_early(whole) and not is_early(whole + b"MotionPhoto\xff\xd8\xff\xda\0\0")
    whole = noise()
    assert is_early(whole[: len(whole) // 2] + bytes(100_000))  # as a download leaves it that was given its full length first
    assert not is_early(noise(progressive=True))
    thumbnail = noise((16, 16))  # its end marker, in a segment of its own, is not the picture's
    with_thumbnail = whole[:2] + b"\xff\xe5" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + whole[2:]
    assert end_of_jpeg(with_thumbnail) == len(with_thumbnail) - 2 and not is_early(with_thumbnail)
    assert end_of_jpeg(with_thumbnail[:-2]) is None
    plain = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(plain, "JPEG")
    assert not is_early(plain.getvalue())


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    """Class folders a and b of three pictures each; the notes go to the test's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "data" / name / f"{i}.jpg").write_bytes(noise((32, 24)))
    return tmp_path / "data"


def test_processes_find_the_same_in_the_same_order(store):
    files = [store / "b" / "0.jpg", *sorted(store.rglob("*.jpg")), store / "gone.jpg"]
    (store / "a" / "1.jpg").write_bytes(b"")
    (store / "b" / "0.jpg").write_bytes(b"text")
    bad = check_images(files, 2, None)
    assert [file for file, _ in bad] == [store / "b" / "0.jpg", store / "a" / "1.jpg", store / "gone.jpg"]
    assert bad == check_images(files, 0, None)


def test_sound_files_are_decoded_once(store, monkeypatch, capsys):
    files, cache, decoded = sorted(store.rglob("*.jpg")), decoding.cache_file(), []
    real = decoding.verdict
    monkeypatch.setattr(decoding, "verdict", lambda file: decoded.append(file) or real(file))

    def count() -> int:
        decoded.clear()
        check_images(files, 0, cache)
        return len(decoded)

    assert (count(), count()) == (6, 0)
    assert "images 6 files; 6 known to be sound\n" in capsys.readouterr().err
    os.utime(files[0], ns=(0, 1))
    assert (count(), count()) == (1, 0)
    assert "; 1 decoded, " in capsys.readouterr().err
    status = files[1].stat()
    files[1].write_bytes(noise((40, 24)))
    os.utime(files[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (count(), count()) == (1, 0)
    files[2].write_bytes(b"")
    assert (count(), count()) == (1, 1)  # a bad file is looked at again
    assert "; 1 bad" in capsys.readouterr().err
    cache.write_bytes(b"\xff\0{" + cache.read_bytes()[:-30])
    assert count() == 2
    monkeypatch.setattr(PIL, "__version__", "1.0")
    assert count() == 6


def test_notes_do_not_grow_for_ever(store, monkeypatch):
    files, cache = sorted(store.rglob("*.jpg")), decoding.cache_file()
    check_images(files, 0, cache)
    size = cache.stat().st_size
    monkeypatch.setattr(decoding, "MOST_NOTES", size)
    check_images(files, 0, cache)
    assert cache.stat().st_size == size
    os.utime(files[0], ns=(0, 1))
    check_images(files, 0, cache)  # one note more than may be
    assert cache.stat().st_size <= size and [file.name for file in cache.parent.iterdir()] == [cache.name]
    notes = cache.read_text()
    assert json.dumps(str(files[0]))[1:-1] in notes and json.dumps(str(files[1]))[1:-1] not in notes  # the newest are kept
    assert check_images(files, 0, cache) == []


def test_a_cache_that_cannot_be_used_stops_no_run(store, capsys):
    files = sorted(store.rglob("*.jpg"))
    assert check_images(files, 0, store) == []  # a directory can be neither read nor written
    assert f"; not noted for the next run: {store}: Is a directory" in capsys.readouterr().err
    assert check_images(files, 0, files[0] / "images.jsonl") == []
    assert "File exists" in capsys.readouterr().err


def test_bad_files_are_listed_or_left_out(store):
    images = read_images(store)
    assert sound(images, 0, False) is images
    (store / "a" / "1.jpg").write_bytes(b"")
    (store / "b" / "2.jpg").write_bytes(b"text")
    with pytest.raises(UserError) as error:
        sound(images, 0, False)
    first, *listed = str(error.value).split("\n")
    assert first == f"{store}: 2 of 6 images cannot be read; delete them or add --skip-bad-images"
    assert (
        listed[0] == f"  {store}/a/1.jpg: zero bytes" and listed[1].startswith(f"  {store}/b/2.jpg: no image") and len(listed) == 2
    )
    kept = sound(images, 0, True)
    assert [file.name for file in kept.files] == ["0.jpg", "2.jpg", "0.jpg", "1.jpg"] and kept.labels == ["a", "a", "b", "b"]
    assert kept.decided[-1].startswith(f"2 bad images left out: {store}/a/1.jpg (zero bytes), {store}/b/2.jpg (no image")
    assert images.decided == ["2 class folders"]
    for i in (0, 2):
        (store / "a" / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="4 of 6 images cannot be read and none is left of the class a; put sound ones there"):
        sound(images, 0, True)
    with pytest.raises(UserError, match="3 of 3 images cannot be read and none is left; put"):
        sound(read_images(store / "a", labelled=False), 0, True)
    for i in range(60):
        (store / "a" / f"more{i}.jpg").touch()
    with pytest.raises(UserError) as error:
        sound(read_images(store), 0, False)
    assert len(str(error.value).split("\n")) == 52 and str(error.value).endswith("\n  and 14 more")


def test_ctrl_c_waits_while_workers_start():
    before, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), ctrl_c_later():
        signal.raise_signal(signal.SIGINT)
        reached.append(True)
    assert reached and signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ValueError), ctrl_c_later():
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is before
    threads = ThreadPoolExecutor(1)

    def elsewhere() -> str:
        with ctrl_c_later():
            return "no handler is set"

    assert threads.submit(elsewhere).result() == "no handler is set"
    threads.shutdown()


SLOW = """
import sys, time
from pathlib import Path
from minift.data import decoding
from minift.errors import command

def slow(file):
    Path(sys.argv[1]).touch()
    time.sleep(0.05)

if __name__ == "__main__":
    decoding.verdict = slow
    command(lambda arguments: decoding.check_images([Path(str(i)) for i in range(1000)], 2, None), "check")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="process groups of POSIX")
def test_ctrl_c_leaves_no_process(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    assert_stops_cleanly([tmp_path / "slow.py", tmp_path / "begun"], tmp_path / "begun", "check: stopped")
