"""Files larger than memory: `predict --data` goes through them block by block, with the predictions of all rows together."""

import json
import os
import random
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from contract.tasks import numbers_file, sets_file
from test_stopping import start
from tiny import WORDS, converted_directory, rows_file

import minift
from minift import predict
from minift.data import encoding
from minift.data.encoding import decode
from minift.data.layout import TextLayout
from minift.data.texts import read_texts, texts_in_blocks
from minift.errors import UserError
from minift.outputs import write_rows

# name of the file -> (content, flags of its layout)
FILES = {
    "plain.csv": (b"id,text\n" + b"".join(b"%d,text %d\n" % (i, i) for i in range(9)), {}),
    "quoted.csv": (b'text,id\r\n"a, b\r\nc",1\r\n\r\n"d ""e""",2\r\nf,3\r\n\r\n\r\n', {}),
    "mac.csv": (b"text;id\rone;1\rtwo;2\rthree;3\r", {}),
    "excel.csv": (b"sep=;\r\ntext;id\r\n\r\na;1\r\nb;2\r\nc;3\r\n", {}),
    "blanks before quotes.csv": (b'id,text\n1,"a, b"\n2, "c, d"\n3,e\n4,f\n', {}),
    "blanks before quotes, and no CSV without them.csv": (b'id,text\n1,e\n2, "c, ""d"", e"\n3,"f" \n'.replace(b'"f" ', b"f"), {}),
    "one column.csv": (b"text\na\n\nb\nc\n\n\n", {}),
    "no header.csv": (b"a,b\n1,2\n3,4\n5,6\n", {"text_column": "2"}),
    "a name that stands below.csv": (b"text,1\na,2\nb,3\nc,4\ntext,5\n", {"text_column": "1"}),
    "pairs.tsv": (b"n\tsentence1\tsentence2\n1\ta\tb\n\n2\t\td\n3\te\t\n4\tg\th", {}),
    "late keys.jsonl": (b'{"text": "a"}\n\n{"text": "b", "id": 1}\n{"id": 2, "text": "c"}\n{"text": "", "late": null}\n', {}),
    "joined.jsonl": (
        b'{"t": "a", "u": null}\n{"u": "b", "t": ""}\n{"t": "c", "u": "d"}\n{"t": ""}',
        {"text_column": "t+u"},
    ),
    "lines.txt": (b"one\n\ntwo\nthree, four\n\tfive\n\n\n", {"format": "lines"}),
    "label first.txt": (b"A one\nB two words\nA three\nB four\n", {"format": "label-first"}),
    "marked.csv": ("text,id\naé中\U0001f600,1\nb,2\nü,3\n".encode("utf-8-sig"), {}),
    "wide.csv": ("text,id\naé中\U0001f600,1\nb,2\nü,3\n".encode("utf-16"), {}),
    "without a mark.csv": ("text,id\naé中\U0001f600,1\nb,2\nü,3\n".encode(f"utf-16-{sys.byteorder[0]}e"), {"encoding": "utf-16"}),
    "latin.csv": ("text\néa\nb\nüber\n".encode("latin-1"), {"encoding": "latin-1"}),
    "doubtful.csv": ("text\néa\nb\nüber\n".encode(), {"encoding": "cp1252"}),
    "japanese.csv": ("text\n日本語\nb\nテキスト\n".encode("shift_jis"), {"encoding": "shift_jis"}),
}
WRONG = {
    "bytes.csv": ("text\n" + "a\n" * 5 + "bcé\n").encode("latin-1"),
    "an end within a character.csv": "text\na\né".encode()[:-1],
    "zero.csv": b"text\r\na\r\nb\0c\r\n",
    "narrow.csv": "text\nab\n".encode("utf-16-be"),
    "open.csv": b'text,id\na,1\nb,2\n"c,3\nd,4\n',
    "quotes.csv": b'text,id\na,1\nb,2\n"c" d,3\n',
    "ragged.csv": b"text,id\na,1\nb,2\nc\n",
    "again.csv": b"text,id\na,1\nb,2\ntext,id\n",
    "number.jsonl": b'{"text": "a"}\n{"text": "b"}\n{"text": 3}\n',
    "broken.jsonl": b'{"text": "a"}\n{"text": "b"}\n{"text": \n',
    "half.jsonl": b'{"text": "a"}\n{"text": "b"}\n{"text": "\\ud800"}\n',
    "empty.csv": b"\n\n\n",
    "header.csv": b"text,id\n\n",
    "columns.csv": b"a,b\n1,2\n",
}


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 1 << 20])
@pytest.mark.parametrize("name", FILES)
def test_blocks_are_the_rows_of_the_file(tmp_path, monkeypatch, name, piece):
    content, flags = FILES[name]
    (tmp_path / name).write_bytes(content)
    whole = read_texts(tmp_path / name, TextLayout(**flags), labelled=False)
    monkeypatch.setattr(encoding, "PIECE", piece)
    for size in (1, 3, 100):
        read = texts_in_blocks(tmp_path / name, TextLayout(**flags), size)
        blocks = list(read.examples)
        assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1) and read.count == len(whole) > 2
        assert read.decided == whole.decided
        for part in ("texts", "pairs", "lines"):
            rows = [getattr(block, part) for block in blocks]
            assert (rows[0] if rows[0] is None else [*chain(*rows)]) == getattr(whole, part)
        assert {key: [*chain(*(block.columns[key] for block in blocks))] for key in blocks[0].columns} == whole.columns


@pytest.mark.parametrize("piece", [1, 2, 3, 5])
@pytest.mark.parametrize("name", FILES)
def test_pieces_of_a_file_decode_as_the_whole(tmp_path, monkeypatch, name, piece):
    content, flags = FILES[name]
    said: list[list[str]] = [[], []]
    text = decode(Path(name), content, flags.get("encoding", "utf-8"), said[0])
    monkeypatch.setattr(encoding, "PIECE", piece)
    (tmp_path / name).write_bytes(content)
    read = encoding.Text(tmp_path / name, flags.get("encoding", "utf-8"), said[1])
    assert "\n".join(read.lines()) == text.rstrip("\n") and said[0] == said[1]
    read.close()


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_before_the_first_block(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(WRONG[name])
    with pytest.raises(UserError) as whole:
        read_texts(tmp_path / name, TextLayout(), labelled=False)
    for piece in (1, 2, 3, 5, 1 << 20):
        monkeypatch.setattr(encoding, "PIECE", piece)
        with pytest.raises(UserError) as error:
            texts_in_blocks(tmp_path / name, TextLayout(), 2)
        assert str(error.value) == str(whole.value)


def test_a_pipe_is_read_once(tmp_path):
    content, flags = FILES["quoted.csv"]
    (tmp_path / "file.csv").write_bytes(content)
    os.mkfifo(tmp_path / "pipe.csv")
    writer = subprocess.Popen(["cp", tmp_path / "file.csv", tmp_path / "pipe.csv"])
    blocks = texts_in_blocks(tmp_path / "pipe.csv", TextLayout(**flags), 2).examples
    assert [text for block in blocks for text in block.texts] == read_texts(tmp_path / "file.csv", TextLayout(), False).texts
    assert writer.wait() == 0


def test_a_file_that_changes_in_the_meantime(tmp_path, monkeypatch):
    rows_file(tmp_path / "rows.csv", 40)
    monkeypatch.setattr(encoding, "PIECE", 100)
    blocks = texts_in_blocks(tmp_path / "rows.csv", TextLayout(), 10).examples
    next(blocks)
    with (tmp_path / "rows.csv").open("a") as file:
        file.write("one more,positive\n")
    with pytest.raises(UserError, match=r"rows.csv: someone writes to the file while it is read"):
        list(blocks)


TASKS = {"text-classification": rows_file, "text-regression": numbers_file, "multi-label-classification": sets_file}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return converted_directory(tmp_path_factory.mktemp("streaming") / "base")


def texts_file(path: Path, rows: int, words: int) -> Path:
    drawn = random.Random(0)
    names = [word for word in WORDS if word.isalpha()]
    lines = [f"{i},{' '.join(drawn.choices(names, k=drawn.randint(1, words)))}\n" for i in range(rows)]
    path.write_text("id,text\n" + "".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", ["full", "probe"])
def test_predictions_are_those_of_all_rows_together(tmp_path, monkeypatch, base, task, method):
    flags = ["--epochs", 1, "--precision", "float32", "--method", method, "--max-length", 20, "--batch-size", 2]
    start("--task", task, "--train", TASKS[task](tmp_path / "rows.csv"), "--model", base, *flags, "--out", tmp_path / "run")
    data = texts_file(tmp_path / "data.csv", 250, 30)
    tuned = minift.load(tmp_path / "run", "cpu")
    expected = tuned.predict(read_texts(data, TextLayout(), labelled=False).texts)
    monkeypatch.setattr(predict, "ROWS", 120)  # a window of 50 batches, of which there are 2.5
    predict.main([str(tmp_path / "run"), "--data", str(data), "--out", str(tmp_path / "out.jsonl"), "--device", "cpu"])
    made = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row.pop("id") for row in made] == [str(i) for i in range(250)]
    assert [{name: row[name] for name in row if name != "text"} for row in made] == expected


def test_what_was_predicted_before_a_failure_stays(tmp_path, monkeypatch, base, capsys):
    start("--train", rows_file(tmp_path / "rows.csv"), "--model", base, "--epochs", 1, "--batch-size", 2, "--out", tmp_path / "run")
    data = texts_file(tmp_path / "data.csv", 250, 5)
    real = predict.by_row

    def growing(rows, made):
        yield from real(rows, made)
        with data.open("a") as file:
            file.write("250,the film\n")

    monkeypatch.setattr(predict, "by_row", growing)
    monkeypatch.setattr(encoding, "PIECE", 100)
    monkeypatch.setattr(predict, "ROWS", 100)
    with pytest.raises(UserError, match="someone writes to the file"):
        predict.main([str(tmp_path / "run"), "--data", str(data), "--out", str(tmp_path / "out.csv")])
    count = len((tmp_path / "out.csv.part").read_text().splitlines()) - 1
    assert count % 100 == 0 and count > 0 and not (tmp_path / "out.csv").exists()
    assert f"note: the first {count} rows are in {tmp_path / 'out.csv.part'}" in capsys.readouterr().err


HOLDS = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"


@pytest.mark.skipif(sys.platform == "win32", reason="a lock as POSIX has it")
def test_two_processes_do_not_write_the_same_file(tmp_path):
    """They would write into one another's rows."""
    part = tmp_path / "out.jsonl.part"
    part.write_text("a row of the other\n")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDS, part], **pipes) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=r"^--out .*out.jsonl: another process is writing .*out.jsonl.part; wait"):
            write_rows(str(tmp_path / "out.jsonl"), [{"text": "a"}])
        assert part.read_text() == "a row of the other\n"
        other.communicate()
    assert write_rows(str(tmp_path / "out.jsonl"), [{"text": "a"}]) == 1
    assert (tmp_path / "out.jsonl").read_text() == '{"text": "a"}\n' and not part.exists()


MEASURED = """
import resource, sys
from minift import predict
predict.ROWS = 800
peaks = []
for data in sys.argv[2:]:
    predict.main([sys.argv[1], "--data", data, "--out", data + ".out.jsonl", "--device", "cpu"])
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(*peaks)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory otherwise")
def test_memory_does_not_grow_with_the_file(tmp_path, base):
    start("--train", rows_file(tmp_path / "rows.csv"), "--model", base, "--epochs", 1, "--max-length", 8, "--out", tmp_path / "run")
    files = []
    for rows in (1600, 8000):  # most of a row is a cell that goes through no tokenizer, whose own memory has its ups and downs
        lines = texts_file(tmp_path / f"{rows}.csv", rows, 5).read_text().splitlines()
        files.append(tmp_path / f"{rows}.csv")
        files[-1].write_text("\n".join([f"{lines[0]},note"] + [f"{line},{'x' * 3000}" for line in lines[1:]]))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    arguments = [sys.executable, "-c", MEASURED, tmp_path / "run", *files]
    done = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    few, many = map(int, done.stdout.split())
    assert many - few < 20, f"{few} MB for 1,600 rows, {many} MB for 8,000"  # 86 MB where all are in memory
