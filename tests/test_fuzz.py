"""Files of strangers, changed at random: each is read, or refused in one line. Nothing ends in a traceback.

The inputs are a function of the code alone (derandomised): what fails here fails everywhere. Each test prints how many it has
tried; `-m slow` tries 10,000 in all, the ordinary suite as many as a minute allows.
"""

import json
import math
import random
import shutil
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from tiny import TEXTS, converted_directory, converted_resnet, huggingface_directory, photographs, rows_file

import convert
import minift
import train
from minift.data.decoding import BadImages
from minift.data.layout import ImageLayout
from minift.data.splits import split
from minift.errors import UserError, look_up
from minift.flags import check_ranges
from minift.pretrained import read as read_converted
from minift.tasks import TASKS

# target -> inputs of the ordinary suite, inputs of `-m slow`, which are 10,000 together
INPUTS = {
    "tables": (400, 4500),
    "directories": (60, 500),
    "checkpoints": (150, 1500),
    "bases": (100, 1000),
    "runs": (150, 1700),
    "adapters": (60, 500),
    "resumed": (20, 300),
}


def outcome(act) -> str:
    """read or refused; a refusal is one line that can be printed, of bad images one more for each."""
    state = torch.get_rng_state()
    try:
        act()
    except UserError as error:
        said = str(error)
        assert said.strip() and len(said.splitlines()) == (1 + len(error.args[1:]) if isinstance(error, BadImages) else 1)
        assert len(said) < 4000, f"a message of {len(said):,} characters: {said[:500]!r}"
        said.encode(errors="backslashreplace")
        return "refused"
    finally:
        torch.set_rng_state(state)
    return "read"


def fuzz(target: str, slow: bool, capsys, act, *strategies):
    """Try so many inputs; print what came of them. Both outcomes must occur, or the inputs would show nothing."""
    number = INPUTS[target][slow]
    seen = Counter()

    @settings(
        max_examples=number,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(st.tuples(*strategies))
    def each(drawn):
        seen[outcome(lambda: act(*drawn))] += 1

    each()
    with capsys.disabled():
        print(f"\n{target}: {seen.total():,} inputs, {seen['read']:,} read, {seen['refused']:,} refused")
    assert seen["read"] and seen["refused"], seen
    return seen


both = pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "many"])


# ---- values and bytes that do not belong ----

DEEP = "[" * 3000 + "]" * 3000
SCALARS = [None, True, False, 0, 1, -1, 2, 3, 1.5, -0.5, 1e9, 1e300, 10**400, math.nan, math.inf, 2**31, 2**63, "", "x", "[CLS]"]
SCALARS += ["a\nb", "\ud83d", "é", "../up", "/dev/null", "nan", "1e-12", "true", "x" * 5000, "\0", ":", "(a+)+$"]
ODD = st.sampled_from(SCALARS) | st.sampled_from([[], {}, [1], ["x"], {"x": 1}, [[]], [None], {"": {}}, ["x", 1], [0.5] * 3])


@st.composite
def edits(draw):
    """(how, seed, value) of one to three changes of a file."""
    ways = ["set", "set", "set", "delete", "add", "swap", "cut", "flip", "insert", "double", "empty", "deep", "digits"]
    return [
        (draw(st.sampled_from(ways)), draw(st.integers(0, 2**32 - 1)), draw(ODD))
        for _ in range(draw(st.sampled_from([1, 1, 1, 3])))
    ]


def places(value, path=()) -> list[tuple]:
    entries = value.items() if isinstance(value, dict) else enumerate(value[:20]) if isinstance(value, list) else ()
    return [found for key, inner in entries for found in [(*path, key), *places(inner, (*path, key))]]


def edit_json(text: str, how: str, pick: random.Random, value) -> str | None:
    """The text with one value of it changed; None where it is no JSON any more."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    found = places(content)
    if not found:
        return json.dumps(value)
    # fields of the upper levels are few and matter most
    level = pick.choice([1, 1, 2, 2, 3, 9])
    path = pick.choice([path for path in found if len(path) <= level])
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if how == "delete":
        del inner[path[-1]]
    elif how == "add" and isinstance(inner, dict):
        inner["stranger"] = value
    elif how == "swap":
        other = pick.choice(found)
        source = content
        for key in other:
            source = source[key]
        inner[path[-1]] = json.loads(json.dumps(source))
    else:
        inner[path[-1]] = value
    return json.dumps(content)


def edit_bytes(raw: bytes, how: str, pick: random.Random) -> bytes:
    at = pick.randrange(len(raw) + 1)
    if how == "cut":
        return raw[:at]
    if how == "flip" and raw:
        at = min(at, len(raw) - 1)
        return raw[:at] + bytes([raw[at] ^ (1 << pick.randrange(8))]) + raw[at + 1 :]
    if how == "double":
        end = pick.randrange(at, len(raw) + 1)
        return raw[:end] + raw[at:end] + raw[end:]
    if how == "empty":
        return b""
    odd = [b"\0", b"\xff", b'"', b"\n", b",", b"{", b"\xef\xbb\xbf", b"\r", b"\t", b"\\u", b"9" * 50, b"\xed\xa0\x80", b";"]
    return raw[:at] + pick.choice(odd) + raw[at:]


def edit(file: Path, changes: list) -> None:
    """JSON by its values or by its bytes, other files by their bytes."""
    for how, seed, value in changes:
        pick = random.Random(seed)
        raw = file.read_bytes()
        changed = None
        if how in ("set", "delete", "add", "swap"):
            changed = edit_json(raw.decode("utf-8", "replace"), how, pick, value) if file.suffix == ".json" else None
            how = "insert"
        elif how == "deep":
            changed = DEEP if file.suffix == ".json" else None
        elif how == "digits":
            changed = '{"x": ' + "7" * 5000 + "}" if file.suffix == ".json" else None
        file.write_bytes(edit_bytes(raw, how, pick) if changed is None else changed.encode("utf-8", "surrogatepass"))


# ---- data ----

# fmt: off
CELLS = [
    "", " ", "a, b", 'say "x"', "text", "label", "sentence", "score", "id", "1", "0", "-1", "1.5", "nan", "é", "x\ty", "two\nlines",
    "\ufeff", "a.jpg", "pos", "neg", "pos|neg", "O", "B-PER", "-", "٣", "²", "1e999", "_", "\x1f", "bad film",
]
# fmt: on
JSONS = [
    '"good"',
    '""',
    "1",
    "-1",
    "1.0",
    "null",
    "NaN",
    "true",
    '["a", "b"]',
    "[]",
    "{}",
    '"\\ud83d"',
    "7" * 5000,
    '"nan"',
    "1e999",
]
KEYS = ["text", "label", "sentence1", "sentence2", "labels", "tokens", "tags", "x", "", "score", "path", "question", "context"]
PLAIN = {  # column -> cells that belong there
    "text": ["good film", "bad", "a slow book", "the app"],
    "path": ["a.jpg", "./a.jpg"],
    "label": ["pos", "neg"],
    "score": ["1", "0.5", "-2"],
    "labels": ["pos", "pos|neg", ""],
    "tokens": [["the", "film"], ["a", "b"]],
    "tags": [["O", "O"], ["B-PER", "I-PER"]],
}
COLUMNS = {  # what the rows of a task have; of any other a text and a label
    "text-regression": ["text", "score"],
    "image-classification": ["path", "label"],
    "multi-label-classification": ["text", "labels"],
    "multi-label-image-classification": ["path", "labels"],
    "token-classification": ["tokens", "tags"],
    "instruction-tuning": ["instruction", "output"],
}
FORMATS = {"token-classification": ["jsonl", "conll"], "instruction-tuning": ["jsonl"]}
FORMATS |= {task: ["txt", "csv", "jsonl"] for task in ("masked-lm", "causal-lm")}


def table_of(task: str, pick: random.Random) -> tuple[str, bytes]:
    """(name of the file, its bytes): of a kind that the task reads, with cells, a header and bytes that do not belong."""

    def sometimes(one_in: int) -> bool:
        return pick.randrange(one_in) == 0

    kind = pick.choice(FORMATS.get(task, ["csv", "tsv", "jsonl"]))
    kind = pick.choice(["csv", "tsv", "jsonl", "txt", "json", "conll"]) if sometimes(8) else kind
    names = COLUMNS.get(task, ["text", "label"]) + [name for name in ("id", "x", "score") if sometimes(4)]
    names = pick.choices(KEYS, k=pick.randint(1, 4)) if sometimes(8) else names
    rows = pick.choice([0, 1, 2, 8, 12, 12, 30])
    odd = sometimes(3)  # whether there may be cells that do not belong

    def cell(name: str):
        return pick.choice(CELLS) if odd and sometimes(5) else pick.choice(PLAIN.get(name, ["x", "y"]))

    if kind in ("jsonl", "json"):
        written = [[json.dumps(cell(name)) for name in names] for _ in range(rows)]
        if odd and rows:
            written[pick.randrange(rows)][-1] = pick.choice(JSONS)
        lines = ["{" + ", ".join(f"{json.dumps(n)}: {c}" for n, c in zip(names, row, strict=True)) + "}" for row in written]
        text = "\n".join(lines) if kind == "jsonl" else "[" + ",".join(lines) + "]"
    elif kind == "conll":
        sentences = [["the O", "film B-X", f"{cell('text')} O"][: pick.randint(1, 3)] for _ in range(rows)]
        text = "\n\n".join(map("\n".join, sentences))
    else:
        body = [[str(cell(name)) for name in names] for _ in range(rows)]
        delimiter = pick.choice([",", ",", ";", "\t"]) if kind == "csv" else "\t"
        quoted = kind == "csv" and not sometimes(4)
        table = body if sometimes(6) else [names, *body]
        written = [[f'"{one.replace(chr(34), 2 * chr(34))}"' if quoted else one for one in row] for row in table]
        text = pick.choice(["\n", "\n", "\r\n", "\r"]).join(map(delimiter.join, written))
    raw = text.encode("utf-8", "surrogatepass")
    for _ in range(pick.choice([0, 0, 0, 1, 2])):
        raw = edit_bytes(raw, pick.choice(["cut", "flip", "insert", "double"]), pick)
    return f"rows.{kind}", raw


def flags_of(kind: type, pick: random.Random) -> dict:
    """Flags of a layout as one may give them, most of them unset."""
    odd = {
        "format": ["csv", "tsv", "jsonl", "label-first", "lines", "x"],
        "header": ["yes", "no"],
        "encoding": ["latin-1", "utf-16", "cp1252", "base64", "x", "utf-8-sig", "idna", "unicode_escape", "utf-7"],
        "delimiter": [";", "tab", "xx", '"', "", " "],
        "label_part": [":", "o", ""],
        "skip_unlabelled": [True],
        "skip_bad_images": [True],
        "documents": ["lines", "blank-lines"],
    }
    columns = ["1", "2", "9", "0", "-1", "text", "label", "x", "", "1+2", "text+x", "1,2", "²", "٣", "9" * 30]
    values = {
        f.name: pick.choice(odd.get(f.name, columns)) for f in fields(kind) if pick.randrange(20) == 0 and f.name != "workers"
    }
    return values | ({"workers": 0} if kind is ImageLayout else {})


KINDS = {task: look_up(TASKS, task, "").LAYOUT for task in TASKS}
SEEDS = st.integers(0, 2**64 - 1)


@both
def test_data_files(slow, tmp_path, capsys):
    options, given = train.options_of, {"pool": "cls", "max_length": 20, "overlap": 5}
    photographs(tmp_path, 1)
    (tmp_path / "ants" / "0.jpg").rename(tmp_path / "a.jpg")

    def act(task, seed):
        pick = random.Random(seed)
        name, raw = table_of(task, pick)
        labelled, layout, kind = pick.randrange(3) > 0, KINDS[task](**flags_of(KINDS[task], pick)), look_up(TASKS, task, "")
        file = tmp_path / name
        file.write_bytes(raw)
        note(f"labelled {labelled}, {layout}, {raw!r}")  # shown where it fails
        check_ranges(layout)
        rows = kind.read(str(file), layout, labelled)
        assert len(rows.inputs()) == len(rows) and len(rows.take(range(len(rows)))) == len(rows)
        if labelled:
            known = {f.name for f in fields(options(task))}
            learned = kind.learn(rows, options(task)(**{name: value for name, value in given.items() if name in known}))
            split(rows, 0.1, 0)
            assert isinstance(learned, kind)

    fuzz("tables", slow, capsys, act, st.sampled_from(list(KINDS)), SEEDS)


def tree_of(place: Path, picture: bytes, task: str, pick: random.Random) -> None:
    """Folders of texts or images, a class each, among them names, files and bytes that do not belong."""
    images = KINDS[task] is ImageLayout
    names = ["a", "b", "c", "train", "test", ".hidden", "é", "x" * 200, "unsup", "a/b", "l\nm", "Thumbs.db"]
    contents = [b"", b"good", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\0", b"%!PS", "bad é".encode(), b"\xe9"]
    odd = pick.randrange(2) == 0
    for folder in pick.sample(["a", "b", "c"], 2) if pick.randrange(4) else pick.sample(names, pick.randrange(4)):
        for i in range(pick.randint(1, 3)):
            name = f"{i}{'.jpg' if images else '.txt'}"
            content = picture if images else b"a good film"
            if odd and pick.randrange(4) == 0:
                name = pick.choice(["1.TXT", "2.png", "3", ".hidden.jpg", "4.jpg", "5.txt", "Thumbs.db"])
                content = pick.choice(contents)
            file = place / folder / name
            if not any(parent.is_file() for parent in file.parents):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
    if odd and pick.randrange(3) == 0 and not (place / "loop").exists():
        (place / "loop").symlink_to(pick.choice([place, place / "nowhere"]))


@both
def test_directories(slow, tmp_path, capsys):
    picture = (photographs(tmp_path / "photos", 1) / "ants" / "0.jpg").read_bytes()

    def act(task, seed):
        pick, place = random.Random(seed), tmp_path / "tree"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        tree_of(place, picture, task, pick)
        note(str(sorted(place.rglob("*"))))
        layout = KINDS[task](**({"workers": 0} if KINDS[task] is ImageLayout else {}))
        rows = look_up(TASKS, task, "").read(str(place), layout, pick.randrange(3) > 0)
        assert len(rows.inputs()) == len(rows)

    of_files = [task for task in KINDS if task in ("text-classification", "image-classification", "masked-lm", "causal-lm")]
    fuzz("directories", slow, capsys, act, st.sampled_from([*of_files, *KINDS]), SEEDS)


# ---- checkpoints and runs ----


class Copy:
    """A directory that is made afresh, with one of its files edited."""

    def __init__(self, source: Path, place: Path, without: tuple[str, ...] = ()):
        self.source, self.place = source, place
        self.files = sorted(
            str(file.relative_to(source)) for file in source.rglob("*") if file.is_file() and file.name not in without
        )

    def edited(self, number: int, changes: list) -> Path:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.source, self.place)
        edit(self.place / self.files[number % len(self.files)], changes)
        return self.place


def where(draws: int):
    return st.integers(0, draws - 1), edits()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """place of: hf (a checkpoint of transformers), bert, resnet (converted), text, image, lora, tags (runs), peft, adapters."""
    place = tmp_path_factory.mktemp("made")
    source = huggingface_directory(place / "hf")
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    words = (source / "vocab.txt").read_text().splitlines()
    (source / "special_tokens_map.json").write_text(json.dumps({"cls_token": "[CLS]", "sep_token": {"content": "[SEP]"}}))
    (source / "added_tokens.json").write_text(json.dumps({words[-1]: len(words) - 1}))
    bert, resnet = converted_directory(place / "bert"), converted_resnet(place / "resnet")
    rows, photos = rows_file(place / "rows.csv", 12), photographs(place / "photos", 2)
    tags = place / "tags.conll"
    tags.write_text("the O\nfood B-PER\n\nbad O\nhotel B-PER\n\n" * 4)
    common = ["--epochs", "1", "--precision", "float32", "--valid", "none"]
    texts = ["--model", str(bert), "--max-length", "20", *common]
    of_texts = ["--train", str(rows), *texts]
    images = ["--task", "image-classification", "--model", str(resnet), "--train", str(photos), "--workers", "0", *common]
    runs = {
        "text": [*of_texts, "--keep", "1"],
        "lora": [*of_texts, "--method", "lora:rank=2"],
        "pfeiffer": [*of_texts, "--method", "pfeiffer"],
        "image": images,
        "tags": ["--task", "token-classification", "--train", str(tags), *texts],
    }
    for name, flags in runs.items():
        train.main([*flags, "--out", str(place / name)])
    for run, library in (("lora", "peft"), ("pfeiffer", "adapters")):
        convert.main([str(place / run), "--to", library, "--out", str(place / library)])
    return place


@both
def test_checkpoints_of_transformers(made, slow, tmp_path, capsys):
    copy = Copy(made / "hf", tmp_path / "hf")

    def act(number, changes):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        convert.main([str(copy.edited(number, changes)), "--out", str(tmp_path / "out")])
        read_converted(tmp_path / "out").body()

    fuzz("checkpoints", slow, capsys, act, *where(len(copy.files)))


@both
def test_converted_checkpoints(made, slow, tmp_path, capsys):
    copies = [Copy(made / "bert", tmp_path / "bert"), Copy(made / "resnet", tmp_path / "resnet")]

    def act(number, changes):
        copy = copies[number % 2]
        checkpoint = read_converted(copy.edited(number // 2, changes))
        checkpoint.body(checkpoint.own_pool if copy is copies[0] else "mean")

    fuzz("bases", slow, capsys, act, *where(2 * max(len(copy.files) for copy in copies)))


@both
def test_runs(made, slow, tmp_path, capsys):
    names = ["text", "lora", "image", "tags"]
    copies = [Copy(made / name / "model", tmp_path / name) for name in names]
    inputs = {"image": [str(made / "photos" / "ants" / "0.jpg")]}

    def act(number, changes):
        i = number % len(names)
        tuned = minift.load(copies[i].edited(number // len(names), changes), "cpu")
        given = inputs.get(names[i], TEXTS)
        assert len(tuned.predict(given)) == len(given)

    fuzz("runs", slow, capsys, act, *where(len(names) * max(len(copy.files) for copy in copies)))


@both
def test_directories_of_peft_and_adapters(made, slow, tmp_path, capsys):
    copies = [Copy(made / name, tmp_path / name) for name in ("peft", "adapters")]

    def act(number, changes):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        place = copies[number % 2].edited(number // 2, changes)
        convert.main([str(place), "--base", str(made / "bert"), "--out", str(tmp_path / "out")])
        minift.load(tmp_path / "out", "cpu").predict(TEXTS)

    fuzz("adapters", slow, capsys, act, *where(2 * max(len(copy.files) for copy in copies)))


@both
def test_runs_that_go_on(made, slow, tmp_path, capsys):
    copy = Copy(made / "text", tmp_path / "text", without=("model.safetensors", "tokenizer.json"))

    def act(number, changes):
        train.main(["--resume", str(copy.edited(number, changes)), "--epochs", "2", "--quiet"])

    fuzz("resumed", slow, capsys, act, *where(len(copy.files)))


def test_it_is_ten_thousand_inputs():
    assert sum(many for _, many in INPUTS.values()) == 10_000


# ---- the fuzzer itself ----


def test_a_planted_bug_is_found(monkeypatch, tmp_path, capsys):
    """One that needs a label that is no word."""
    from minift.data import labels

    def rare(cell):
        if isinstance(cell, str) and not cell.isalnum():
            raise KeyError(cell)
        return as_name(cell)

    as_name = labels.as_name
    monkeypatch.setitem(labels.KINDS, "name", rare)
    with pytest.raises(KeyError):
        test_data_files(False, tmp_path, capsys)


def raise_error(message: str):
    raise UserError(message)


def test_an_error_is_one_line_whatever_name_it_holds():
    with pytest.raises(UserError) as caught:
        raise_error("no such file: a\nb\x1b[2J\u2028c")
    assert str(caught.value) == r"no such file: a\nb\x1b[2J\u2028c"


def test_an_error_that_repeats_a_whole_file_keeps_what_and_what_to_do():
    with pytest.raises(UserError) as caught:
        raise_error("a.json: the label " + "x" * 100_000 + " is unknown; add it")
    said = str(caught.value)
    assert len(said) < 2100 and said.startswith("a.json: the label x") and said.endswith("x is unknown; add it")
