"""Files in directories: which there are, and a class for each folder. Texts and images are read alike.

train/ants/1.jpg  train/bees/2.png      a folder a class; files in folders below a class folder belong to it
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from minift.data.examples import check_characters
from minift.errors import UserError

CLUTTER = {".ds_store", "thumbs.db", "desktop.ini", "__macosx"}  # of file managers: nobody misses them, so they are not said
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


@dataclass(frozen=True)
class Kind:
    """What is looked for: extensions in lower case, and what messages call such files."""

    extensions: frozenset[str]
    noun: str  # images, texts
    example: str  # photo.jpg
    hint: str = ""  # what to do where there is none


def class_folders(path: Path, kind: Kind, without: frozenset[str] = frozenset()) -> tuple[list[Path], list[str], list[str]]:
    """(files, class of each, what to tell the user). without: names of folders that are no classes and are left out.

    Raises UserError for splits in the place of classes, files that have no class, an empty class folder, nothing at all.
    """
    entries = [entry for entry in listing(path) if not is_hidden(entry.name)]
    folders = [entry.name for entry in entries if entry.is_dir()]
    loose = sum(Path(entry.name).suffix.lower() in kind.extensions for entry in entries if not entry.is_dir())
    lowered = {name.lower(): name for name in reversed(folders)}
    train = lowered.get("train") or lowered.get("training")
    if train and lowered.keys() <= SPLITS:
        valid = next((lowered[name] for name in ("val", "valid", "validation", "dev") if name in lowered), None)
        test = next((lowered[name] for name in ("test", "testing") if name in lowered), None)
        flags = (
            f"--train {path / train}" + (f" --valid {path / valid}" if valid else "") + (f" --test {path / test}" if test else "")
        )
        raise UserError(f"{path}: its folders are splits, not classes: {', '.join(folders)}; write {flags}")
    left_out_folders = [name for name in folders if name.lower() in without]
    folders = [name for name in folders if name not in left_out_folders]
    if loose and not folders:
        raise UserError(f"{path}: {loose:,} {kind.noun} directly in it and no class folders; move each into the folder of its "
                        f"class, as {path}/CLASS/{kind.example}, or list them in a table")  # fmt: skip
    files, labels, left_out, empty = [], [], Counter(), []
    for name in folders:
        check_characters(name, f"{path}: the name of a class folder")
        found, others = files_below(path / name, kind)
        files += found
        labels += [name] * len(found)
        left_out += others
        if not found:
            empty.append(f"{path / name}: no {kind.noun} in this class folder{f' ({listed(others)})' if others else ''}")
    if not files:
        seen = f"; it holds {listed(left_out)}" if left_out else ""
        raise UserError(f"{path}: no {kind.noun} in it{seen}; class folders of {' '.join(sorted(kind.extensions))} files "
                        f"are expected{kind.hint}")  # fmt: skip
    if empty:
        more = f" (and {len(empty) - 1} more empty ones)" if empty[1:] else ""
        raise UserError(f"{empty[0]}{more}; put {kind.noun} there or delete the folder")
    decided = [f"{len(folders):,} class folders"]
    if left_out_folders:
        decided.append(f"the folder {', '.join(left_out_folders)} left out: it is no class")
    if loose:
        decided.append(f"{kind.noun} beside the class folders left out, as they have no class: {loose:,}")
    return files, labels, decided + said_of(left_out)


def all_files(path: Path, kind: Kind) -> tuple[list[Path], list[str]]:
    """(the files of a directory and all below it, what to tell the user)"""
    files, left_out = files_below(path, kind)
    if not files:
        seen = f"; it holds {listed(left_out)}" if left_out else ""
        raise UserError(f"{path}: no {kind.noun} in it{seen}; {' '.join(sorted(kind.extensions))} files are expected{kind.hint}")
    return files, [f"{kind.noun} of {len({file.parent for file in files}):,} folders", *said_of(left_out)]


def listing(directory: str | Path) -> list[os.DirEntry]:
    try:
        return sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{directory}: cannot be read ({error.strerror})") from None


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in CLUTTER


def files_below(directory: str | Path, kind: Kind, seen: set[str] | None = None) -> tuple[list[Path], Counter]:
    """(files in this directory and all below it, how many others of which sort). seen: directories already walked."""
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
            below, others_below = files_below(entry.path, kind, seen)
            found += below
            others += others_below
        elif not entry.is_file():
            others["no regular file"] += 1  # a pipe would be waited for
        elif extension in kind.extensions:
            check_characters(entry.path, "the name of a file")
            found.append(Path(entry.path))
        else:
            others[extension or "without an extension"] += 1
    return found, others


def listed(others: Counter) -> str:
    return ", ".join(f"{n:,} {sort}" for sort, n in others.most_common(6)) + (", ..." if len(others) > 6 else "")


def said_of(left_out: Counter) -> list[str]:
    return [f"files left out: {listed(left_out)}"] if left_out else []
