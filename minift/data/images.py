"""Images and their classes: which files there are, and what class each has. decoding.py opens them.

    train/ants/1.jpg  train/bees/2.png      a folder a class; files in folders below a class folder belong to it
    photos.csv  photos.tsv  photos.jsonl    a path and a label a row; paths are taken from the table's own directory

What was assumed is said; nothing is skipped silently.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from minift.data.columns import USUAL, choose_columns, is_header, other_columns, resolve
from minift.data.examples import Examples, check_characters, listed
from minift.data.folders import Kind, all_files, class_folders
from minift.data.labels import alike, keep_part, read_labels, strata_of
from minift.data.layout import ImageLayout, not_for_directories
from minift.data.table import Table, read_table
from minift.errors import UserError

EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2"),
}
IMAGE_FILES = Kind(frozenset(EXTENSIONS), "images", "photo.jpg")
PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "img_path")


@dataclass
class Images(Examples):
    """A list of image files with their classes; `lines` where a table lists them."""

    files: list[Path]
    labels: list[str] | list[float] | list[list[str]] | None = None
    shortened: int = 0  # labels of which --label-part has kept a part

    ROWS = ("files", "labels")
    UNIT = "image"

    def inputs(self) -> list[dict[str, str]]:
        return [{"image": str(file)} for file in self.files]

    def example(self) -> str:
        return "photo.jpg"

    def where(self, row: int) -> str:
        return str(self.files[row]) if self.lines is None else super().where(row)

    def strata(self) -> list[str] | None:
        return strata_of(self.labels)


def read_images(
    source: str | Path | Iterable, layout: ImageLayout | None = None, labelled: bool = True, label: str = "name"
) -> Images:
    """The files of a directory or a table, in a fixed order: folders and names by the alphabet, a table's rows as they stand.

    source: a directory, a table, or `-` for a table on standard input; else an iterable of files, which is gone through once.
    layout: how a table is read; its text column is the one of the paths, found by itself where it is not given.
    labelled: every file must have a class; else a directory is taken as it is, and `source` may be one image.
    label: what a label in a table is: "name", "number" or "names"; see labels.py.

    Raises UserError for what is not there, a directory without class folders or with splits in the place of classes, an empty
    class folder, a table that names a missing file, no images at all. Nothing is opened: that is for `decoding.sound`.
    Tests: tests/data/test_images.py, test_reads_* and test_names_the_mistake.
    """
    layout = layout or ImageLayout()
    if not isinstance(source, str | Path):
        return from_list(source, labelled)
    path = Path(source)
    check_characters(str(path), "the path of a file")
    if os.path.isdir(path):
        return from_directory(path, layout, labelled, label)
    if str(source) != "-" and not os.path.exists(path):
        raise UserError(f"{path}: no such file or directory")
    if path.suffix.lower() not in EXTENSIONS:
        return from_table(path, layout, labelled, label)
    if labelled:
        raise UserError(f"{path}: one image, without a class; name a directory of class folders or a table of path,label")
    return Images(path, [path], decided=["one image"])


def from_directory(path: Path, layout: ImageLayout, labelled: bool, label: str) -> Images:
    if not labelled:
        files, decided = all_files(path, IMAGE_FILES)
        return Images(path, files, decided=decided + not_for_directories(layout))
    if label != "name":
        raise UserError(f"{path}: a directory, whose folders are classes; for this task a table is expected")
    files, labels, decided = class_folders(path, IMAGE_FILES)
    labels, shortened = keep_part(labels, layout.label_part)
    return Images(path, files, labels, shortened, decided=decided + alike(Counter(labels)) + not_for_directories(layout))


def from_table(path: Path, layout: ImageLayout, labelled: bool, label: str) -> Images:
    table = read_table(path, layout)
    flags = {"label": layout.label_column} if labelled else {}
    column = path_column(table, layout)
    pick = {"image": [column]}
    if labelled and layout.label_column is None and table.width == 2:
        pick["label"] = [1 - column]
    pick = choose_columns(table, flags, label, pick)
    table.decided.append("columns " + ", ".join(f"{role} = {' + '.join(map(table.name, i))}" for role, i in pick.items()))
    labels, shortened = None, 0
    if labelled:
        labels, table, shortened = read_labels(table, pick["label"], layout, label)
    names = [name.strip() for name in table.texts(column)]
    files = [table.path.parent / name for name in names]
    for row, name in enumerate(names):
        if not name:
            raise UserError(f"{table.where(row)}: a row without the path of an image; fill it in or take the row out")
    missing = [row for row, file in enumerate(files) if not os.path.isfile(file)]
    if missing:
        more = f" (and {len(missing) - 1:,} more rows)" if missing[1:] else ""
        raise UserError(f"{table.where(missing[0])}: no such file: {files[missing[0]]}{more}; "
                        "fix the path, which is taken from the table's own directory, or take the row out")  # fmt: skip
    others = other_columns(table, {i for columns in pick.values() for i in columns})
    return Images(table.path, files, labels, shortened, lines=table.lines, decided=table.decided, columns=others)


def path_column(table: Table, layout: ImageLayout) -> int:
    """The column of the paths: as given, else by a usual name, else the first that ends in an image's name.

    On the way it is settled whether the first row is a header: by the name, or where that column's first cell is no image's name.
    """
    flags = {"text": layout.text_column, "label": layout.label_column}
    if layout.text_column or table.kind in ("label-first", "lines"):
        if table.columns is None:
            table.settle(is_header(table, flags, layout.header, {*USUAL, *PATHS}))
        columns = resolve(table, "text", layout.text_column) if layout.text_column else [table.columns.index("text")]
        if columns[1:]:
            raise UserError(f"{table.path}: --text-column {layout.text_column}: one column of paths is expected")
        return columns[0]
    first = table.columns or [cell.strip() for cell in table.rows[0]]
    last = [table.rows[-1].get(name) for name in first] if table.kind == "jsonl" else table.rows[-1]
    lowered = [name.lower() for name in first]
    usual = next((lowered.index(name) for name in PATHS if name in lowered and layout.header != "no"), None)
    column = usual if usual is not None else next((i for i, cell in enumerate(last[: len(first)]) if is_image(cell)), None)
    if column is None:
        shown = ", ".join(f"{i} {str(cell)[:30]!r}" for i, cell in enumerate(first[:20], 1))
        raise UserError(f"{table.path}: which column holds the paths of the images? columns are {shown}; head it `path`")
    if lowered.count(lowered[column]) > 1 and usual is not None:
        raise UserError(f"{table.path}: the header bears {first[column]!r} more than once; say which column by its number, "
                        f"as --text-column {column + 1}")  # fmt: skip
    if table.columns is None:
        table.settle(layout.header == "yes" or (layout.header == "auto" and (usual is not None or not is_image(first[column]))))
    return column


def is_image(cell) -> bool:
    return isinstance(cell, str) and Path(cell.strip()).suffix.lower() in EXTENSIONS


def from_list(source: Iterable, labelled: bool) -> Images:
    """Files that come from no directory and no table."""
    if labelled:
        raise UserError("a list of image files has no labels; name a directory of class folders or a table of path,label")
    files = listed(source, "image files")
    for i, file in enumerate(files):
        if not isinstance(file, str | Path):
            raise UserError(f"input {i}: the path of an image is expected, found {type(file).__name__} ({repr(file)[:40]})")
        check_characters(str(file), f"input {i}")
        if not os.path.isfile(file):
            wrong = "a directory; for all images in it say --data" if os.path.isdir(file) else "no such file"
            raise UserError(f"input {i}: {file}: {wrong}")
    return Images(Path("inputs"), [Path(file) for file in files], given=True)
