"""Directories and tables of pictures: every layout is read right, every mistake is named with its place."""

import random
from pathlib import Path

import numpy as np
import pytest

from minift.data.images import read_images
from minift.data.labels import label_ids, label_names
from minift.data.layout import ImageLayout as Layout
from minift.errors import UserError


def lay(root: Path, *names: str) -> Path:
    """Empty files of these names: reading opens none. A name that ends in / is a directory."""
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    return root


def names(images) -> list[str]:
    base = images.path.parent if images.path.is_file() else images.path
    return [file.relative_to(base).as_posix() for file in images.files]


def test_reads_class_folders(tmp_path):
    root = lay(tmp_path, "bees/2.PNG", "bees/10.jpg", "ants/x/deep.webp", "ants/b.gif", "ants/a.jpeg", ".git/objects/1.jpg")
    images = read_images(root)
    assert names(images) == ["ants/a.jpeg", "ants/b.gif", "ants/x/deep.webp", "bees/10.jpg", "bees/2.PNG"]
    assert images.labels == ["ants", "ants", "ants", "bees", "bees"] and images.lines is None and len(images) == 5
    assert images.decided == ["2 class folders"]
    some = images.take(np.array([4, 0]))
    assert (names(some), some.labels) == (["bees/2.PNG", "ants/a.jpeg"], ["bees", "ants"])


def test_class_folders_that_may_be_one(tmp_path):
    images = read_images(lay(tmp_path, "Bees/1.jpg", "ants/1.jpg", "bees /1.jpg"))
    assert "'Bees' (1 rows) and 'bees ' (1 rows)" in images.decided[-1]


def test_reads_and_says_what_is_left_out(tmp_path):
    root = lay(tmp_path, "a/1.jpg", "a/notes.txt", "a/more.txt", "b/1.jpg", "b/2.heic", "b/README", "b/.2.jpg", "b/.DS_Store")
    lay(root, "a/Thumbs.db", "a/__MACOSX/._1.jpg", "a/.ipynb_checkpoints/1.jpg", "loose.jpg", "list.csv")
    images = read_images(root)
    assert names(images) == ["a/1.jpg", "b/1.jpg"]
    assert images.decided == [
        "2 class folders",
        "images beside the class folders left out, as they have no class: 1",
        "files left out: 2 hidden, 2 .txt, 1 .heic, 1 without an extension",
    ]


def test_reads_linked_folders_once(tmp_path):
    lay(tmp_path, "store/1.jpg", "data/a/1.jpg", "data/b/1.jpg")
    (tmp_path / "data/c").symlink_to(tmp_path / "store")
    (tmp_path / "data/a/round").symlink_to(tmp_path / "data/a")
    images = read_images(tmp_path / "data")
    assert names(images) == ["a/1.jpg", "b/1.jpg", "c/1.jpg"]
    assert "1 linked a second time" in images.decided[-1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "path,label\nx/1.jpg,ant\ny/2.jpg,bee\n", "image = path, label = label"),
        ("a.csv", "Class;ID;File_Name\nant;7;x/1.jpg\nbee;8;y/2.jpg\n", "image = File_Name, label = Class"),
        ("a.csv", "x/1.jpg,ant\ny/2.jpg,bee\n", "image = 1, label = 2"),
        ("a.tsv", "ant\tx/1.jpg\nbee\ty/2.jpg\n", "image = 2, label = 1"),
        ("a.csv", "photo,species\nx/1.jpg,ant\ny/2.jpg,bee\n", "image = photo, label = species"),
        ("a.csv", "title,photo,label\nt,x/1.jpg,ant\nt,y/2.jpg,bee\n", "image = photo, label = label"),
        ("a.jsonl", '{"image": "x/1.jpg", "label": "ant"}\n{"image": "y/2.jpg", "label": "bee"}\n', "image = image, label = label"),
    ],
)
def test_reads_tables(tmp_path, name, content, said):
    lay(tmp_path, "x/1.jpg", "y/2.jpg")
    (tmp_path / name).write_text(content)
    images = read_images(tmp_path / name)
    assert (names(images), images.labels) == (["x/1.jpg", "y/2.jpg"], ["ant", "bee"])
    assert images.lines in ([1, 2], [2, 3]) and f"columns {said}" in images.decided
    assert images.where(1) == f"{tmp_path / name}:{images.lines[1]}"


def test_reads_tables_by_given_columns_and_absolute_paths(tmp_path):
    lay(tmp_path, "pictures/1.jpg", "pictures/2.jpg", "tables/")
    table = tmp_path / "tables" / "a.csv"
    table.write_text(f"id,where,kind,label\n1,{tmp_path}/pictures/1.jpg,ant,x\n2,../pictures/2.jpg,bee,x\n")
    images = read_images(table, layout=Layout(text_column="where", label_column="kind"))
    assert images.labels == ["ant", "bee"] and all(file.is_file() for file in images.files)


def test_reads_without_labels(tmp_path):
    root = lay(tmp_path, "b.jpg", "a.png", "sub/c.jpg", "notes.txt")
    (root / "list.csv").write_text("file\nb.jpg\na.png\n")
    every = read_images(root, labelled=False)
    assert (names(every), every.labels) == (["a.png", "b.jpg", "sub/c.jpg"], None)
    assert every.decided == ["images of 2 folders", "files left out: 1 .csv, 1 .txt"]
    assert names(read_images(root / "list.csv", labelled=False)) == ["b.jpg", "a.png"]
    assert read_images(root / "b.jpg", labelled=False).files == [root / "b.jpg"]


# name -> (files that are there, content of list.csv, what is read, what the error says)
WRONG = {
    "nothing there": ([], None, "gone", "gone: no such file or directory"),
    "no class folders": (["1.jpg", "2.jpg"], None, "", "2 images directly in it and no class folders; move each into"),
    "an empty class folder": (["ants/1.jpg", "bees/", "wasps/"], None, "",
                             "bees: no images in this class folder (and 1 more empty ones); put"),
    "a class folder of other files": (["a/1.jpg", "b/1.heic"], None, "", "b: no images in this class folder (1 .heic); put"),
    "train and val": (["train/a/1.jpg", "val/a/1.jpg"], None, "", "write --train ROOT/train --valid ROOT/val"),
    "Train, Test and Valid": (["Train/a/1.jpg", "Test/a/1.jpg", "Valid/a/1.jpg"], None, "",
                             "write --train ROOT/Train --valid ROOT/Valid"),
    "train alone": (["train/a/1.jpg", "README.md"], None, "",
                    "its folders are splits, not classes: train; write --train ROOT/train"),
    "no images": (["a/1.txt", "b/2.txt"], None, "", "no images in it; it holds 2 .txt; class folders of .avif"),
    "an empty directory": ([], None, "", "no images in it; class folders"),
    "one picture": (["1.jpg"], None, "1.jpg", "1.jpg: one image, without a class; name a directory"),
    "a missing file": (["1.jpg"], "path,label\n1.jpg,a\ngone.jpg,b\nfar.jpg,b\n", "list.csv",
                       "list.csv:3: no such file: ROOT/gone.jpg (and 1 more rows); fix the path"),
    "a row without a path": (["1.jpg"], "path,label\n1.jpg,a\n ,b\n", "list.csv", "list.csv:3: a row without the path"),
    "a row without a label": (["1.jpg"], "path,label\n1.jpg,a\n1.jpg,\n", "list.csv", "list.csv:3: a row without a label"),
    "no column of paths": ([], "id,label\n1,a\n2,b\n", "list.csv",
                           "which column holds the paths of the images? columns are 1 'id', 2 'label'"),
    "no column of labels": (["1.jpg"], "path,x,y\n1.jpg,1,2\n1.jpg,2,3\n", "list.csv", "no column bears a usual name"),
    "an empty table": ([], "", "list.csv", "the file is empty"),
    "no table": (["a.xlsx"], None, "a.xlsx", "the extension .xlsx does not tell the format"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_names_the_mistake(tmp_path, case):
    files, table, read, wanted = WRONG[case]
    lay(tmp_path, *files)
    if table is not None:
        (tmp_path / "list.csv").write_text(table)
    with pytest.raises(UserError) as error:
        read_images(tmp_path / read)
    assert wanted.replace("ROOT", str(tmp_path)) in str(error.value) and "\n" not in str(error.value)


def test_names_the_mistake_in_a_directory_for_prediction(tmp_path):
    with pytest.raises(UserError, match=r"no images in it; it holds 1 \.txt; .* files are expected"):
        read_images(lay(tmp_path, "a.txt"), labelled=False)


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    lay(tmp_path, "a/1.jpg", "b/1.jpg")
    scandir = __import__("os").scandir

    def refuse(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(UserError, match=r"b: cannot be read \(Permission denied\)"):
        read_images(tmp_path)


def test_label_names(tmp_path):
    assert label_names(read_images(lay(tmp_path / "words", "b/1.jpg", "a/1.jpg"))) == ["a", "b"]
    assert label_names(read_images(lay(tmp_path / "numbers", "10/1.jpg", "9/1.jpg"))) == ["9", "10"]
    assert len(label_names(read_images(lay(tmp_path / "few", *(f"{i}/1.jpg" for i in range(30)))))) == 30
    (lay(tmp_path, "1.jpg") / "a.csv").write_text("path,label\n1.jpg,b\n1.jpg,a\n")
    assert label_names(read_images(tmp_path / "a.csv")) == ["a", "b"]
    with pytest.raises(UserError, match=r"one: one class folder only, a; a classifier needs two or more; name the directory"):
        label_names(read_images(lay(tmp_path / "one", "a/1.jpg")))


def test_classes_of_a_split(tmp_path):
    train = read_images(lay(tmp_path / "train", "a/1.jpg", "b/1.jpg", "c/1.jpg"))
    known = label_names(train)
    assert label_ids(read_images(lay(tmp_path / "val", "c/1.jpg", "a/1.jpg", "b/1.jpg")), known, complete=True).tolist() == [
        0,
        1,
        2,
    ]
    part = read_images(lay(tmp_path / "part", "c/1.jpg", "c/2.jpg"))
    assert label_ids(part, known).tolist() == [2, 2]
    with pytest.raises(
        UserError, match=r"part: no image of the classes a, b, which training has; put some there, or leave --valid"
    ):
        label_ids(part, known, complete=True)
    with pytest.raises(
        UserError, match=r"more/d/1.jpg: the label 'd' does not occur in the training images \(known: a, b, c\); fix"
    ):
        label_ids(read_images(lay(tmp_path / "more", "a/1.jpg", "d/1.jpg")), known)
    (lay(tmp_path, "1.jpg") / "a.csv").write_text("path,label\n1.jpg,a\n1.jpg,d\n")
    with pytest.raises(UserError, match=r"a.csv:3: the label 'd'"):
        label_ids(read_images(tmp_path / "a.csv"), known)


def test_random_tables_are_read_or_refused_in_one_line(tmp_path):
    """Pieces that a reader stumbles over, in any order: no other exception than UserError."""
    lay(tmp_path, "1.jpg", "2.png")
    pieces = [
        "path",
        "label",
        "image",
        ",",
        "\t",
        '"',
        "\n",
        "1.jpg",
        "2.png",
        "gone.jpg",
        "a",
        " ",
        "",
        "/",
        "x" * 300,
        "\\u0000",
        "\0",
    ]
    pieces += ['{"path": "1.jpg"', ', "label": "a"', "}", "null", "[1]"]
    draw, read = random.Random(0), 0
    for i in range(3000):
        table = tmp_path / draw.choice(["a.csv", "a.tsv", "a.jsonl"])
        head = "" if i % 2 else '{"path": "1.jpg", "label": "a"}\n' if table.suffix == ".jsonl" else "path,label\n1.jpg,a\n"
        table.write_text(head + "".join(draw.choices(pieces, k=draw.randrange(10))))
        layout = Layout(text_column=draw.choice([None, None, "1", "path", "1+2"]), label_column=draw.choice([None, "2"]))
        try:
            images = read_images(table, layout, labelled=draw.random() < 0.5, label=draw.choice(["name", "number", "names"]))
        except UserError as error:
            assert "\n" not in str(error)
        else:
            read += 1
            assert all(file.is_file() for file in images.files)
    assert read > 30
