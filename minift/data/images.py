"""Pictures and their classes: which files there are, and what class each has. decoding.py opens them.

    train/ants/1.jpg  train/bees/2.png      a folder a class; files in folders below a class folder belong to it
    photos.csv  photos.tsv  photos.jsonl    a path and a label a row; paths are taken from the table's own directory

What is decided is said; nothing is skipped silently.
"""

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minift.data.examples import Examples
from minift.data.layout import Layout
from minift.data.reading import READERS, by_value, file_format, label_names, read_jsonl, read_text, read_texts
from minift.errors import UserError

EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2"),
}
CLUTTER = {".ds_store", "thumbs.db", "desktop.ini", "__macosx"}  # of file managers: nobody misses them, so they are not said
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "img_path")


@dataclass
class Images(Examples):
    """A list of image files with their classes; `lines` where a table lists them."""

    files: list[Path]
    labels: list[str] | None = None
    shortened: int = 0  # labels of which --label-part has kept a part

    ROWS = ("files", "labels")

    def inputs(self) -> list[dict[str, str]]:
        return [{"image": str(file)} for file in self.files]

    def example(self) -> str:
        return "photo.jpg"

    def where(self, row: int) -> str:
        return str(self.files[row]) if self.lines is None else super().where(row)

    def strata(self) -> list[str] | None:
        return self.labels


# ---- which files there are ----


def read_images(path, layout: Layout | None = None, labelled: bool = True) -> Images:
    """The files of a directory or a table, in a fixed order: folders and names by the alphabet, a table's rows as they stand.

    labelled: every file must have a class; else a directory is taken as it is, and `path` may be one picture.
    layout: how a table is read; its text column is the one of the paths, found by itself where it is not given.

    Raises UserError for what is not there, a directory without class folders or with splits in the place of classes, an empty
    class folder, a table that names a missing file, no images at all. Nothing is opened: that is for `sound`.
    Tests: tests/data/test_images.py, test_reads_* and test_names_the_mistake.
    """
    if not isinstance(path, str | Path):
        return Images(Path("predict"), [Path(f) for f in path])
    path, layout = Path(path), layout or Layout()
    if path.is_dir():
        return read_folders(path) if labelled else read_directory(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or directory")
    if path.suffix.lower() not in EXTENSIONS:
        return read_table(path, labelled, layout)
    if labelled:
        raise UserError(f"{path}: one picture, without a class; name a directory of class folders or a table of path,label")
    return Images(path, [path], decided=["one picture"])


def read_folders(path: Path) -> Images:
    entries = [entry for entry in listing(path) if not is_hidden(entry.name)]
    folders = [entry.name for entry in entries if entry.is_dir()]
    loose = sum(Path(entry.name).suffix.lower() in EXTENSIONS for entry in entries if not entry.is_dir())
    lowered = {name.lower(): name for name in reversed(folders)}
    train = lowered.get("train") or lowered.get("training")
    if train and lowered.keys() <= SPLITS:
        valid = next((lowered[name] for name in ("val", "valid", "validation", "dev") if name in lowered), None)
        flags = f"--train {path / train}" + (f" --valid {path / valid}" if valid else "")
        raise UserError(f"{path}: its folders are splits, not classes: {', '.join(folders)}; write {flags}")
    if loose and not folders:
        raise UserError(f"{path}: {loose:,} images directly in it and no class folders; move each into the folder of its class, as "
                        f"{path}/CLASS/photo.jpg, or list them in a table of path,label")  # fmt: skip
    files, labels, left_out, empty = [], [], Counter(), []
    for name in folders:
        found, others = files_below(path / name)
        files += found
        labels += [name] * len(found)
        left_out += others
        if not found:
            empty.append(f"{path / name}: no images in this class folder{f' ({counted(others)})' if others else ''}")
    if not files:
        seen = f"; it holds {counted(left_out)}" if left_out else ""
        raise UserError(f"{path}: no images in it{seen}; class folders of {' '.join(sorted(EXTENSIONS))} files are wanted")
    if empty:
        more = f" (and {len(empty) - 1} more empty ones)" if empty[1:] else ""
        raise UserError(f"{empty[0]}{more}; put images there or delete the folder")
    decided = [f"{len(folders):,} class folders"]
    if loose:
        decided.append(f"{loose:,} images beside the class folders left out: they have no class")
    return Images(path, files, labels, decided=decided + said_of(left_out))


def read_directory(path: Path) -> Images:
    files, left_out = files_below(path)
    if not files:
        seen = f"; it holds {counted(left_out)}" if left_out else ""
        raise UserError(f"{path}: no images in it{seen}; {' '.join(sorted(EXTENSIONS))} files are wanted")
    decided = [f"images of {len({file.parent for file in files}):,} folders", *said_of(left_out)]
    return Images(path, files, decided=decided)


def read_table(path: Path, labelled: bool, layout: Layout) -> Images:
    rows = read_texts(path, path_column(path, labelled, layout), labelled)
    files = [path.parent / text.strip() for text in rows.texts]
    for line, text in zip(rows.lines, rows.texts, strict=True):
        if not text.strip():
            raise UserError(f"{path}:{line}: a row without the path of an image; fill it in or take the row out")
    missing = [i for i, file in enumerate(files) if not file.is_file()]
    if missing:
        more = f" (and {len(missing) - 1:,} more rows)" if missing[1:] else ""
        raise UserError(f"{path}:{rows.lines[missing[0]]}: no such file: {files[missing[0]]}{more}; "
                        "mend the path, which is taken from the table's own directory, or take the row out")  # fmt: skip
    decided = [re.sub(r"^columns text =", "columns image =", entry) for entry in rows.decided]
    return Images(path, files, rows.labels, rows.shortened, lines=rows.lines, decided=decided)


def path_column(path: Path, labelled: bool, layout: Layout) -> Layout:
    """The layout with the column of the paths as its text column: by a usual name, else the first that ends in an image's name.

    In a table of two columns the other one is the label.
    """
    kind = file_format(path, layout)
    if layout.text_column or kind in ("label-first", "lines"):
        return layout
    text = read_text(path, layout.encoding)
    columns, records = read_jsonl(path, text) if kind == "jsonl" else (None, READERS[kind](path, text, []))
    rows = [cells for _, cells in records if cells]
    if not rows:
        return layout  # read_texts says what is wrong

    def is_image(cell) -> bool:
        return isinstance(cell, str) and Path(cell.strip()).suffix.lower() in EXTENSIONS

    header = columns or [cell.strip() for cell in rows[0]]
    lowered = [name.lower() for name in header]
    usual = [lowered.index(name) for name in PATHS if name in lowered and layout.header != "no"]
    at = next(iter(usual), None)
    if at is None:
        at = next((i for i, cell in enumerate(rows[-1][: len(header)]) if is_image(cell)), None)
    if at is None:
        listed = ", ".join(f"{i} {str(cell)[:30]!r}" for i, cell in enumerate(header, 1))
        raise UserError(f"{path}: which column holds the paths of the images? columns are {listed}; head it `path`")
    named = columns or layout.header == "yes" or (layout.header == "auto" and (usual or not is_image(header[at])))

    def name(i: int) -> str:
        return header[i] if named else str(i + 1)

    label = layout.label_column or (name(1 - at) if labelled and len(header) == 2 else None)
    return replace(layout, text_column=name(at), label_column=label)


def listing(directory: str | Path) -> list[os.DirEntry]:
    try:
        return sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{directory}: cannot be read ({error.strerror})") from None


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in CLUTTER


def files_below(directory: str | Path, seen: set[str] | None = None) -> tuple[list[Path], Counter]:
    """(images in this directory and all below it, how many other files of which kind). seen: directories already walked."""
    seen = set() if seen is None else seen
    seen.add(os.path.realpath(directory))
    found, others = [], Counter()
    for entry in listing(directory):
        extension = os.path.splitext(entry.name)[1].lower()
        if entry.name.lower() in CLUTTER:
            continue
        if is_hidden(entry.name):
            others["hidden"] += 1
        elif entry.is_dir():
            if os.path.realpath(entry.path) in seen:  # by a link, which may lead round in a circle
                others["linked a second time"] += 1
                continue
            below, others_below = files_below(entry.path, seen)
            found += below
            others += others_below
        elif extension in EXTENSIONS:
            found.append(Path(entry.path))
        else:
            others[extension or "without an extension"] += 1
    return found, others


def counted(others: Counter) -> str:
    return ", ".join(f"{n:,} {kind}" for kind, n in others.most_common(6)) + (", ..." if len(others) > 6 else "")


def said_of(left_out: Counter) -> list[str]:
    return [f"{left_out.total():,} files left out: {counted(left_out)}"] if left_out else []


# ---- classes ----


def class_names(images: Images) -> list[str]:
    """The classes of training in the order of their ids: by value where all are whole numbers, else by the alphabet.

    Raises UserError where there is one class only. Test: test_class_names.
    """
    if images.lines is not None:
        return label_names(images)
    names = set(images.labels)
    if len(names) == 1:
        raise UserError(f"{images.path}: one class folder only, {names.pop()}; a classifier needs two or more; "
                        "name the directory that holds the class folders")  # fmt: skip
    return by_value(names)


def class_ids(images: Images, names: list[str], complete: bool = False) -> np.ndarray:
    """(N) ids of the classes. complete: of every class there must be a picture, as in a validation split.

    A class that validation lacks is an error: the epoch would be chosen without regard to it, and its recall is no number.
    Raises UserError for a class that training has not seen, with its place, and for a missing one. Test: test_classes_of_a_split.
    """
    ids = {name: i for i, name in enumerate(names)}
    for i, label in enumerate(images.labels):
        if label not in ids:
            known = ", ".join(names[:8]) + (", ..." if names[8:] else "")
            raise UserError(f"{images.where(i)}: the class {label!r} does not occur in the training images (known: {known}); "
                            "mend its name, take its images out, or add the class to training")  # fmt: skip
    found = set(images.labels)
    missing = [name for name in names if name not in found]
    if complete and missing:
        listed = ", ".join(missing[:8]) + (f" and {len(missing) - 8:,} more" if missing[8:] else "")
        raise UserError(f"{images.path}: no image of the class{'es' if missing[1:] else ''} {listed}, which training has; put some "
                        "there, or leave --valid out to hold a part of the training images back")  # fmt: skip
    return np.array([ids[label] for label in images.labels], dtype=np.int64)
