"""Labels: from the cells of a table to names, numbers or sets of names, and from names to ids.

name      one label a row: text without outer blanks; numbers and truth values as JSON writes them
number    a finite number
names     any number of labels a row: a JSON list, a cell `a|b`, or several columns of 0 and 1; an empty cell or list is a row
          without any label, which is a row as good as the others
"""

import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from minift.data.encoding import decode, read_bytes
from minift.data.examples import Examples, check_characters
from minift.data.layout import Layout
from minift.data.stored import Few, View, mapped
from minift.data.table import Table
from minift.errors import UserError

MISSING = {"nan", "na", "n/a", "<na>", "null", "none", "-"}  # words that mostly stand for no label


def read_labels(table: Table, columns: list[int], layout: Layout, label: str = "name") -> tuple[Sequence, Table, int]:
    """(label of each row, the table without the rows that have none, labels of which --label-part has kept a part)

    A row has no label where its cell is empty, null or JSON's NaN: an error, or left out with --skip-unlabelled; and where the
    column gold_label holds `-`, as in SNLI where the annotators did not agree: left out. Both are counted and said.
    """
    if layout.label_part and label == "number":
        raise UserError(f"--label-part {layout.label_part}: the labels are numbers")
    if columns[1:] and label != "names":
        raise UserError(f"--label-column {layout.label_column}: several columns; one is expected for this task")
    name = ", ".join(table.name(i) for i in columns)
    large = isinstance(table.rows, View)
    found = from_flags(table, columns) if columns[1:] else each(table, name, table.cells(columns[0]), KINDS[label])
    # of a large file no list, whose numbers would take 32 bytes each
    labels = array("d", (math.nan if x is None else x for x in found)) if large and label == "number" else list(found)
    labels, shortened = keep_part(labels, layout.label_part)
    table, labels = leave_out_unlabelled(table, labels, name, layout.skip_unlabelled)
    if large:  # numbers are read again as they are asked for
        labels = mapped(table.cells(columns[0]), float) if label == "number" else Few(labels)
    if label != "number":
        if label == "names" and (none := sum(not several for several in labels)):
            table.decided.append(f"{none:,} rows without any label")
        counts: Counter = Counter()
        for row, one in enumerate(labels):
            for each_name in one if label == "names" else (one,):
                if not each_name.isascii():
                    check_characters(each_name, f"{table.where(row)}: column {name}")
                counts[each_name] += 1
        table.decided += notes_on(counts)
    return labels, table, shortened


def each(table: Table, name: str, cells: Iterable, read: Callable) -> Iterator:
    """What `read` makes of each cell; None: no label. Its ValueError says what is wrong with a cell."""
    same: dict = {}  # equal labels are one object; of a large file they would fill the memory
    for row, cell in enumerate(cells):
        try:
            label = read(cell)
        except ValueError as error:
            header = "; if this row is a header, add --header yes" if row == 0 and not table.columns else ""
            raise UserError(f"{table.where(row)}: column {name}: {error}{header}") from None
        key = tuple(label) if isinstance(label, list) else label
        yield same.setdefault(key, label) if isinstance(label, str | list) else label


def keep_part(labels: list, part: str | None) -> tuple[list, int]:
    """(what stands before `part` in each label, how many labels hold it); a label of which nothing is left is none."""
    if part is None:
        return labels, 0

    def cut(label: str | None) -> str | None:
        return label and (label.split(part)[0].strip() or None)

    shortened = sum(part in name for one in labels for name in (one if isinstance(one, list) else [one or ""]))
    return [list(dict.fromkeys(filter(None, map(cut, one)))) if isinstance(one, list) else cut(one) for one in labels], shortened


def leave_out_unlabelled(table: Table, labels: Sequence, name: str, skip: bool) -> tuple[Table, list]:
    undecided = {i for i, one in enumerate(labels) if one == "-"} if name.lower() == "gold_label" else set()
    without = [i for i, one in enumerate(labels) if one is None or (isinstance(one, float) and math.isnan(one))]
    if without and not skip:
        more = f" (and {len(without) - 1} more rows)" if without[1:] else ""
        raise UserError(f"{table.where(without[0])}: a row without a label, column {name}{more}; label it, take it out, "
                        "or add --skip-unlabelled")  # fmt: skip
    if not without and not undecided:
        return table, labels
    if without:
        table.decided.append(f"{len(without):,} row{'s' * (len(without) != 1)} without a label left out")
    if undecided:
        table.decided.append(f"{len(undecided):,} rows left out whose gold_label is '-': the annotators did not agree")
    left_out = undecided.union(without)
    kept = [i for i in range(len(labels)) if i not in left_out]
    if not kept:
        raise UserError(f"{table.path}: no row has a label, column {name}")
    return table.take(kept), [labels[i] for i in kept]


def as_name(cell) -> str | None:
    if isinstance(cell, str):
        return cell.strip() or None
    if isinstance(cell, list | dict):
        several = "; for several labels a row: --task multi-label-classification" if isinstance(cell, list) else ""
        raise ValueError(f"one label is expected, found {json.dumps(cell)[:60]}{several}")
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    return json.dumps(cell)


def as_number(cell) -> float | None:
    if cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and math.isnan(cell)):
        return None
    try:
        if isinstance(cell, bool | list | dict) or "_" in str(cell):  # float() takes 1_000
            raise ValueError
        number = float(cell)
    except (ValueError, OverflowError):
        comma = "; a decimal comma must be a point" if re.fullmatch(r"\s*[-+]?\d+,\d+\s*", str(cell)[:40]) else ""
        raise ValueError(f"a number is expected, found {json.dumps(cell)[:60]}{comma}") from None
    if not math.isfinite(number):
        raise ValueError(f"a finite number is expected, found {json.dumps(cell)[:60]}")
    return number


def as_names(cell) -> list[str] | None:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if not isinstance(cell, list):
        return list(dict.fromkeys(filter(None, map(str.strip, as_name(cell).split("|"))))) if as_name(cell) else []
    names = [as_name(one) for one in cell]
    if None in names:
        raise ValueError(f"a list with an empty label, {json.dumps(cell)[:60]}")
    return list(dict.fromkeys(names))


def as_flag(cell) -> bool | None:
    if cell is None or cell == "":
        return None
    known = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}
    text = str(cell).strip().lower()
    if text not in known:
        raise ValueError(f"0 or 1 is expected, found {json.dumps(cell)[:60]}")
    return known[text]


def from_flags(table: Table, columns: list[int]) -> Iterator[list[str] | None]:
    """The labels of each row from columns of 0 and 1, which bear the labels' names; None where one of its cells is empty."""
    names = [table.name(i) for i in columns]
    flags = [list(each(table, name, table.cells(i), as_flag)) for i, name in zip(columns, names, strict=True)]
    for row in zip(*flags, strict=True):
        yield None if None in row else [name for name, flag in zip(names, row, strict=True) if flag]


KINDS = {"name": as_name, "number": as_number, "names": as_names}


def notes_on(counts: Counter) -> list[str]:
    """What to tell of labels that may not be meant as classes of their own."""
    notes = []
    missing = [name for name in counts if name.lower() in MISSING]
    if missing:
        rows = ", ".join(f"{name!r} ({counts[name]:,} rows)" for name in missing[:3])
        notes.append(f"the label {rows} is a class like any other; where it means that there is none, empty the cells and add "
                     "--skip-unlabelled")  # fmt: skip
    whole = all(is_whole(name) for name in counts)
    if whole and "-1" in counts and len(counts) > 1 and min(int(name) for name in counts) == -1:
        notes.append(
            f"the label -1 ({counts['-1']:,} rows) is a class like any other; in some data sets it means that there is none"
        )
    return notes + alike(counts)


def alike(counts: Counter) -> list[str]:
    """A note that names labels which may be meant as one."""
    forms: dict[str, list[str]] = {}
    for name in counts:
        forms.setdefault(normal(name), []).append(name)
    several = [names for names in forms.values() if names[1:]]
    if not several:
        return []
    shown = ", ".join(" and ".join(f"{name!r} ({counts[name]:,} rows)" for name in names) for names in several[:3])
    more = f", and {len(several) - 3:,} more" if several[3:] else ""
    return [f"labels that differ only in case, blanks, quotes or the form of a number are classes of their own: {shown}{more}"]


def normal(name: str) -> str:
    """A label without regard to case, blanks, quotes, and the way a number is written."""
    form = re.sub(r"[\s\"'“”„‘’`]+", "", name).casefold()
    try:
        return repr(float(form)) if len(form) < 18 and "_" not in form else form
    except ValueError:
        return form


def is_whole(name: str) -> bool:
    """Whether a label is a whole number; one of more digits is a name."""
    return re.fullmatch(r"-?\d{1,18}", name, re.ASCII) is not None


# ---- splitting ----


def strata_of(labels: list | None) -> list[str] | None:
    """For each row what a split shall keep in proportion: its class, or of several labels the rarest; None for numbers."""
    if not labels or not isinstance(labels[0], str | list):
        return None
    if isinstance(labels[0], str):
        return labels
    counts = Counter(one for several in labels for one in several)
    return [min(several, key=lambda one: (counts[one], one), default="") for several in labels]


# ---- names and ids ----


def name_labels(examples: Examples, file: str | None) -> tuple[list[str], list[str] | None]:
    """(names of the labels in the order of their ids, how the examples write them; None: by these names)

    file: one that names every label; None: the labels are called what the examples call them.
    """
    if file is None:
        return label_names(examples), None
    names = read_label_names(file)
    for row, several in enumerate(examples.labels):
        for one in several if isinstance(several, list) else (several,):
            if one not in names:
                known = f"{', '.join(list(names)[:8])}{', ...' if len(names) > 8 else ''}"
                raise UserError(f"{examples.where(row)}: the label {one!r} has no name in {file} (it names {known}); "
                                "a name a line counts from 0; other labels take a JSON file of {label: name}")  # fmt: skip
    return list(names.values()), list(names)


def read_label_names(file: str) -> dict[str, str]:
    """Label as the data has it -> its name, in the order of the ids.

    file: a name a line, of the labels 0, 1, ...; or with the extension .json a list of names or an object {label: name}, as
    id2label in the config.json of transformers. Raises UserError, with file and line. Test: tests/data/test_labels.py.
    """
    path, raw = read_bytes(file)
    text = decode(path, raw, "utf-8", [])
    if path.suffix.lower() == ".json":
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}: not valid JSON ({error})") from None
        found = found.get("id2label", found) if isinstance(found, dict) else found
        if not isinstance(found, dict | list):
            raise UserError(f"{file}: a list of names, or an object of label and name, is expected, found {text[:40]!r}")
        pairs = list(found.items()) if isinstance(found, dict) else [(str(i), name) for i, name in enumerate(found)]
        places = [f"{file}: the label {label}" for label, _ in pairs]
    else:
        pairs = [(str(i), name) for i, name in enumerate(text.rstrip("\n").split("\n"))]
        places = [f"{file}:{i + 1}" for i in range(len(pairs))]
    seen: dict[str, str] = {}
    for (_, name), place in zip(pairs, places, strict=True):
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{place}: a name is expected, found {json.dumps(name)[:60]}")
        check_characters(name, place)
        if name.strip() in seen:
            raise UserError(f"{place}: the name {name.strip()!r} stands for another label too ({seen[name.strip()]})")
        seen[name.strip()] = place
    if len(pairs) < 2:
        raise UserError(f"{file}: {len(pairs)} name; two or more are expected")
    names = {label: name.strip() for label, name in pairs}
    return {label: names[label] for label in in_order(names)}


def label_names(examples: Examples) -> list[str]:
    """The labels in the order of their ids: by value where all are whole numbers, else by the alphabet.

    Raises UserError for one class only, and for labels that are no classes: a different one in more than half of the rows, or
    many numbers. Tests: tests/data/test_labels.py.
    """
    labels = examples.labels
    several = isinstance(labels[0], list)
    counts = Counter(one for row in labels for one in row) if several else Counter(labels)
    if several and not counts:
        raise UserError(f"{examples.path}: no row has a label")
    if several:
        return in_order(counts)
    from_folders = examples.lines is None
    if len(counts) == 1:
        if from_folders:
            raise UserError(f"{examples.path}: one class folder only, {labels[0]}; a classifier needs two or more; "
                            "name the directory that holds the class folders")  # fmt: skip
        raise UserError(f"{examples.path}: every row has the label {labels[0]!r}; a classifier needs two or more")
    fraction = next((name for name in counts if re.fullmatch(r"-?\d+\.\d+", name) and float(name) % 1), None)
    if fraction and len(counts) > 20 and all(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in counts):
        raise UserError(f"{examples.path}: the label is a number with {len(counts)} different values, as {fraction}; "
                        "--task text-regression is the task for that")  # fmt: skip
    if not from_folders and len(examples) >= 20 and len(counts) > len(examples) / 2:
        raise UserError(
            f"{examples.path}: {len(counts)} different labels in {len(examples)} rows, as {labels[0][:40]!r}: "
            "this is no column of classes; say which one is with --label-column"
        )
    return in_order(counts)


def in_order(labels: Iterable[str]) -> list[str]:
    numbers = all(map(is_whole, labels))
    return sorted(labels, key=(lambda label: (int(label), label)) if numbers else None)


def label_ids(examples: Examples, names: list[str], complete: bool = False) -> np.ndarray:
    """(N) ids of the labels. complete: every label must occur, as in a validation split of the user's own.

    A label that validation lacks is an error then: the epoch would be chosen without regard to it, and its recall is undefined.
    Raises UserError for a label that training has not seen, with its place, and for a missing one.
    """
    ids = known_ids(examples, names, complete)
    return np.fromiter((ids[label] for label in examples.labels), np.int64, len(examples))


def label_sets(examples: Examples, names: list[str]) -> np.ndarray:
    """(N, C) truth values: which of the C labels each row has. Raises UserError as `label_ids`."""
    ids = known_ids(examples, names, complete=False)
    sets = np.zeros((len(examples), len(names)), dtype=bool)
    for row, several in enumerate(examples.labels):
        sets[row, [ids[label] for label in several]] = True
    return sets


def known_ids(examples: Examples, names: list[str], complete: bool) -> dict[str, int]:
    """Label -> its id, after a look at whether the examples have these labels and no other."""
    ids = {name: i for i, name in enumerate(names)}
    unit = examples.UNIT
    for row, several in enumerate(examples.labels):
        for label in several if isinstance(several, list) else (several,):
            if label not in ids:
                known = ", ".join(names[:8]) + (", ..." if names[8:] else "")
                raise UserError(f"{examples.where(row)}: the label {label!r} does not occur in the training {unit}s "
                                f"(known: {known}); fix it, take the {unit} out, or add the label to training")  # fmt: skip
    if complete:
        found = set(examples.labels)
        missing = [name for name in names if name not in found]
        if missing:
            shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8:,} more" if missing[8:] else "")
            raise UserError(f"{examples.path}: no {unit} of the class{'es' if missing[1:] else ''} {shown}, which training has; "
                            f"put some there, or leave --valid out to hold a part of the training {unit}s back")  # fmt: skip
    return ids
