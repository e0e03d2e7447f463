"""Which column of a table is what: by the flags, else by the usual names; and what to suggest where neither tells."""

import shlex

from minift.data.table import Table
from minift.errors import UserError

# Usual names of columns, compared without regard to case; the first that a table has is taken.
PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("#1 string", "#2 string"),  # MRPC
)
TEXTS = ("sentence", "text", "review", "content", "comment", "tweet", "message", "question", "title", "body")
TEXTS += ("utterance", "comment_text", "description")
LABELS = ("label", "labels", "class", "category", "sentiment", "target", "gold_label", "rating", "stars")
LABELS += ("intent", "topic", "queue", "department", "quality", "is_duplicate", "score", "priority")
NUMBERS = ("score", "similarity", *(name for name in LABELS if name != "score"))  # where the label is a number
USUAL = {*TEXTS, *LABELS, *NUMBERS, *(name for pair in PAIRS for name in pair)}

MOST_KEPT = 100  # other columns of a row that are kept; a file of more is mostly one of keys that differ from row to row

JOINS = {"text": "+", "pair": "+", "label": ","}  # role -> what stands between the names of several columns in its flag


def is_header(table: Table, flags: dict[str, str | None], header: str, names: set[str] = USUAL) -> bool:
    """Whether the first row holds the names of the columns.

    header: yes, no or auto, where a usual or a given name tells. flags: role -> the column that was given for it. names: the usual
    ones. A usual name that also stands below in its column is a value there, as the label `question`.
    """
    if header not in ("auto", "yes", "no"):
        raise UserError(f"--header {header}: known are auto, yes, no")
    if header != "auto":
        return header == "yes"
    cells = [cell.strip() for cell in table.rows[0]]
    given = [part for role, name in flags.items() if name for part in {name, *parts(role, name)}]

    def usual(i: int) -> bool:
        return cells[i].lower() in names and (len(cells) == 1 or not recurs(table, i))

    numbers = [int(name) - 1 for name in given if is_number(name)]
    all_given = all(flags[role] for role in ("text", "label") if role in flags)
    if numbers and all_given:  # so there may be none; in a header all the columns that are meant bear usual names
        return all(i < len(cells) and usual(i) for i in numbers)
    return any(cell in given or usual(i) for i, cell in enumerate(cells))


def recurs(table: Table, column: int) -> bool:
    """Whether the first row's cell stands in this column again; a first row that is repeated whole does not count."""
    first = table.rows[0]
    return any(row[column : column + 1] == first[column : column + 1] and row != first for row in table.rows[1:])


def is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 10


def parts(role: str, name: str) -> list[str]:
    return [part.strip() for part in name.split(JOINS[role])]


def choose_columns(
    table: Table, flags: dict[str, str | None], label: str = "name", pick: dict[str, list[int]] | None = None
) -> dict[str, list[int]]:
    """Role -> numbers of its columns, from 0: what the flags say, else the first usual name that has no other role.

    flags: role (text, pair, label) -> what was given; the table must have a text and a label where these are keys.
    label: what a label is (see labels.py). pick: roles that are known already. Tests: tests/data/test_columns.py.
    """
    pick = dict(pick or {})
    given = {role: name for role, name in flags.items() if name is not None}
    for role, name in given.items():
        pick[role] = resolve(table, role, name)
        taken = [i for columns in pick.values() for i in columns]
        if len(set(taken)) < len(taken):
            raise UserError(f"{table.path}: --{role}-column {name}: the same column twice; columns are {shown(table)}")

    free: dict[str, list[int]] = {}  # name in lower case -> its columns that have no role yet
    taken = {i for columns in pick.values() for i in columns}
    for i, name in enumerate(table.columns or ()):
        if i not in taken:
            free.setdefault(name.lower(), []).append(i)
    pair = next((pair for pair in PAIRS if set(pair) <= free.keys()), None)
    if pair and "pair" in flags and not {"text", "pair"} & pick.keys():
        pick["text"], pick["pair"] = (the_one(table, role, free, name) for role, name in zip(("text", "pair"), pair, strict=True))
    elif "pair" in flags and "pair" not in pick and "text" in pick:
        say_what_is_left(table, pick, free)
    for role, names in (("text", TEXTS), ("label", NUMBERS if label == "number" else LABELS)):
        usual = next((name for name in names if name in free), None)
        if role in flags and role not in pick and usual:
            pick[role] = the_one(table, role, free, usual)
    if "text" in flags and "text" not in given and "pair" not in pick:
        others = [table.name(free[name][0]) for name in TEXTS if name in free]
        if others and "text" in pick:
            names = "+".join([table.name(pick["text"][0]), *others])
            table.decided.append(f"not read: {', '.join(others)} (joined by --text-column {shlex.quote(names)})")
    for role in ("text", "label"):
        if role in flags and role not in pick:
            named = table.columns or names_of_columns(table)
            what = "no column bears a usual name for the" if named else "no header, so say which column is the"
            hint = suggest(table, named, pick, "label" in flags, label)
            raise UserError(f"{table.path}: {what} {role}; columns are {shown(table)}; perhaps {hint}")
    return pick


def resolve(table: Table, role: str, given: str) -> list[int]:
    """The columns that a flag names, by name or by number from 1. A name that holds a + or a comma itself goes first."""
    names = [given] if table.columns and given in table.columns else parts(role, given)
    return [find_column(table, role, given, name) for name in names]


def find_column(table: Table, role: str, given: str, name: str) -> int:
    found = [i for i, column in enumerate(table.columns or ()) if column == name]
    if found[1:]:
        raise UserError(f"{table.path}: --{role}-column {given}: {twice(table, name, found)}")
    if found:
        return found[0]
    if is_number(name) and 1 <= int(name) <= table.width:
        return int(name) - 1
    kind = "columns are" if table.columns else "the file has no header; its first row is"
    raise UserError(f"{table.path}: --{role}-column {name}: no such column; {kind} {shown(table)}")


def the_one(table: Table, role: str, free: dict[str, list[int]], name: str) -> list[int]:
    """Take the column of a usual name out of `free`."""
    found = free.pop(name)
    if found[1:]:
        raise UserError(f"{table.path}: {twice(table, name, found)}, as --{role}-column {found[0] + 1}")
    return found


def twice(table: Table, name: str, found: list[int]) -> str:
    numbers = " and ".join(str(i + 1) for i in found)
    return f"the header bears {name!r} more than once, in columns {numbers}; say which by its number"


def say_what_is_left(table: Table, pick: dict[str, list[int]], free: dict[str, list[int]]) -> None:
    """One text of a usual pair was named and the other was not."""
    chosen = {table.name(i).lower() for i in pick["text"]}
    for pair in PAIRS:
        other = set(pair) - chosen
        if len(other) == 1 and other <= free.keys():
            name = table.name(free[other.pop()][0])
            table.decided.append(f"not read: {name} (a second text by --pair-column {shlex.quote(name)})")
            return


def shown(table: Table) -> str:
    cells = table.columns or [str(cell)[:30] for cell in table.rows[0]]
    more = f", and {len(cells) - 20:,} more" if cells[20:] else ""
    return ", ".join(f"{i} {name!r}" for i, name in enumerate(cells[:20], 1)) + more


def names_of_columns(table: Table) -> list[str] | None:
    """The first row where it looks like names: short, different, no number among them, and none stands below in its column."""
    first = [cell.strip() for cell in table.rows[0]]
    if len(first) < 2 or len(table.rows) < 3 or len({name.lower() for name in first}) < len(first):
        return None
    strange = any(not name or len(name) > 40 or name.replace(".", "").lstrip("-").isdigit() for name in first)
    return None if strange or any(recurs(table, i) for i in range(len(first))) else first


def suggest(table: Table, names: list[str] | None, pick: dict[str, list[int]], labelled: bool, label: str) -> str:
    """Flags that look right: the text is the column of the longest cells, the label one of few different cells."""
    first = 1 if table.columns is None and len(table.rows) > 1 else 0  # a first row may be a header
    sample = table.take(range(first, min(len(table.rows), 1000)))
    taken = {i for columns in pick.values() for i in columns}
    by_column = {i: [str(cell) for cell in sample.cells(i)] for i in range(min(table.width, 200)) if i not in taken}

    def name(i: int) -> str:
        return shlex.quote(names[i]) if names else str(i + 1)

    text = None if "text" in pick or not by_column else max(by_column, key=lambda i: sum(map(len, by_column[i])))
    flags = [] if text is None else [f"--text-column {name(text)}"]
    if labelled and "label" not in pick:
        different = {i: len(set(cells)) for i, cells in by_column.items() if i != text}
        few = [i for i, n in different.items() if 1 < n <= max(2, len(sample.rows) / 2)]
        if label == "number":
            few = [i for i in different if all(is_decimal(cell) for cell in by_column[i])][-1:]
        if not few:
            return "a file without labels is for minift.predict"
        flags.append(f"--label-column {name(min(few, key=different.get))}")
    return " ".join(flags)


def is_decimal(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def other_columns(table: Table, taken: set[int]) -> dict[str, list]:
    """The cells that are neither text nor label, by column, so that predictions can repeat them."""
    return cells_of(table, other_names(table, taken))


def cells_of(table: Table, columns: dict[str, int]) -> dict[str, list]:
    return {name: table.cells(i) for name, i in columns.items()}


def other_names(table: Table, taken: set[int]) -> dict[str, int]:
    """Name -> number of the columns that are kept for predictions."""
    others = [i for i in range(table.width) if i not in taken]
    if len(others) > MOST_KEPT:
        table.decided.append(f"{len(others):,} other columns not kept for predictions, which is done for {MOST_KEPT} at most")
        return {}
    columns: dict[str, int] = {}
    for i in others:
        name = table.name(i)
        columns[f"{name}_{i + 1}" if name in columns else name] = i
    return columns
