"""Which column is what: usual names, names given, what is suggested, what is kept besides."""

import pytest

from minift.data.images import read_images
from minift.data.layout import ImageLayout
from minift.data.layout import TextLayout as Layout
from minift.data.texts import read_texts
from minift.errors import UserError


def read(tmp_path, name: str, content: str, labelled: bool = True, **flags):
    (tmp_path / name).write_text(content, encoding="utf-8")
    return read_texts(tmp_path / name, Layout(**flags), labelled)


def error_of(tmp_path, name: str, content: str, **flags) -> str:
    with pytest.raises(UserError) as error:
        read(tmp_path, name, content, **flags)
    assert "\n" not in str(error.value)
    return str(error.value)


PAIRS = {
    "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tone\ttwo\n0\t9\t10\tthree\tfour\n",
    "RTE": "index\tsentence1\tsentence2\tlabel\n0\tone\ttwo\t1\n1\tthree\tfour\t0\n",
    "QNLI": "index\tquestion\tsentence\tlabel\n0\tone\ttwo\t1\n1\tthree\tfour\t0\n",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tone\ttwo\t1\n1\t3\t4\tthree\tfour\t0\n",
    "SNLI": "gold_label\tsentence1_parse\tsentence1\tsentence2\tpairID\tlabel1\n1\t(\tone\ttwo\t7\t1\n0\t)\tthree\tfour\t8\t1\n",
    "STS-B": "index\tgenre\tfilename\tsentence1\tsentence2\tscore\n0\tx\ty\tone\ttwo\t1\n1\tx\ty\tthree\tfour\t0\n",
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_as_they_are_distributed(tmp_path, name):
    rows = read(tmp_path, "a.tsv", "\ufeff" + PAIRS[name])
    assert (rows.texts, rows.pairs, rows.labels) == (["one", "three"], ["two", "four"], ["1", "0"])


def test_half_of_a_pair_is_remarked_upon(tmp_path):
    rows = read(tmp_path, "a.tsv", PAIRS["RTE"], text_column="sentence1")
    assert rows.pairs is None and "not read: sentence2 (a second text by --pair-column sentence2)" in rows.decided
    rows = read(tmp_path, "a.tsv", PAIRS["RTE"], text_column="sentence1", pair_column="sentence2")
    assert rows.pairs == ["two", "four"] and not any("not read" in one for one in rows.decided)


TICKETS = (
    "Ticket ID,Created,Description,Queue,Priority\n"
    '17,2024-01-02,"It does not start,\nnot at all",Billing,high\n18,2024-01-03,It is slow to load,Support,low\n'
    "19,2024-01-03,Where is my invoice,Billing,high\n"
)


def test_a_table_of_tickets(tmp_path):
    rows = read(tmp_path, "a.csv", TICKETS)
    assert "columns text = Description, label = Queue" in rows.decided and rows.labels == ["Billing", "Support", "Billing"]
    assert rows.columns == {
        "Ticket ID": ["17", "18", "19"],
        "Created": ["2024-01-02", "2024-01-03", "2024-01-03"],
        "Priority": ["high", "low", "high"],
    }
    assert rows.take([2, 0]).columns["Ticket ID"] == ["19", "17"]


def test_unusual_names_are_suggested_by_name(tmp_path):
    content = TICKETS.replace("Description", "What they wrote").replace("Queue", "Team").replace("Priority", "Urgency")
    said = error_of(tmp_path, "a.csv", content)
    assert "no column bears a usual name for the text; columns are 1 'Ticket ID', 2 'Created'" in said
    assert "perhaps --text-column 'What they wrote' --label-column " in said
    rows = read(tmp_path, "a.csv", content, text_column="What they wrote", label_column="Team")
    assert "header" in rows.decided and len(rows) == 3
    below = content.replace("18,2024-01-03", "Ticket ID,2024-01-03")  # a cell of the first row again: perhaps no header
    assert "no header, so say which column is the text" in error_of(tmp_path, "a.csv", below)


def test_a_usual_name_that_is_a_label(tmp_path):
    content = "How do I reset it ?\tquestion\nThank you\tpraise\nWhere is it ?\tquestion\n"
    assert "no header, so say which column is the text" in error_of(tmp_path, "a.tsv", content)
    assert len(read(tmp_path, "a.tsv", content, text_column="1", label_column="2")) == 3


def test_a_header_that_is_repeated(tmp_path):
    said = error_of(tmp_path, "a.csv", "text,label\na,x\ntext,label\nb,y\n")
    assert "a.csv:3: the header stands here again; take the line out" in said


@pytest.mark.parametrize(
    ("header", "flags", "wanted"),
    [
        ("text,id,text,label", {}, "'text' more than once, in columns 1 and 3; say which by its number, as --text-column 1"),
        ("Text,id,text,label", {}, "'text' more than once, in columns 1 and 3; say which"),
        ("text,id,text,label", {"text_column": "text"}, "--text-column text: the header bears 'text' more than once, in columns 1"),
        ("label,text,x,label", {}, "'label' more than once, in columns 1 and 4; say which by its number, as --label-column 1"),
        ("sentence1,sentence2,sentence2,label", {}, "'sentence2' more than once, in columns 2 and 3; say which by its number, as "
                                                    "--pair-column 2"),
    ],
)  # fmt: skip
def test_a_name_that_stands_twice(tmp_path, header, flags, wanted):
    assert wanted in error_of(tmp_path, "a.csv", f"{header}\na,b,c,d\ne,f,g,h\n", **flags)


def test_a_name_that_stands_twice_can_be_told_apart(tmp_path):
    content = "text,id,text,label,id\na,1,b,x,2\nc,3,d,y,4\n"
    rows = read(tmp_path, "a.csv", content, text_column="3")
    assert rows.texts == ["b", "d"] and rows.columns == {"text": ["a", "c"], "id": ["1", "3"], "id_5": ["2", "4"]}
    assert read(tmp_path, "a.csv", "Text,text,label\na,b,x\nc,d,y\n", text_column="text").texts == ["b", "d"]
    said = error_of(tmp_path, "a.jsonl", '{"text": "a", "label": 1, "text": "b"}\n')
    assert "a.jsonl:1: not valid JSON (the key 'text' stands twice in an object)" in said
    (tmp_path / "1.jpg").touch()
    (tmp_path / "t.csv").write_text("path,path,label\n1.jpg,gone.jpg,x\n1.jpg,gone.jpg,y\n")
    with pytest.raises(
        UserError, match="the header bears 'path' more than once; say which column by its number, as --text-column 1"
    ):
        read_images(tmp_path / "t.csv")
    assert len(read_images(tmp_path / "t.csv", ImageLayout(text_column="1"))) == 2


def test_text_columns_are_joined(tmp_path):
    rows = read(tmp_path, "a.csv", "title,description,label\nOne,two,x\nThree,,y\n,four,x\n", text_column="title+description")
    assert rows.texts == ["One two", "Three", "four"]
    assert "columns text = title + description, label = label" in rows.decided
    assert "title is empty in 1 rows" in rows.decided and "description is empty in 1 rows" in rows.decided
    assert (
        read(tmp_path, "a.csv", "a,b,c\nOne,two,x\nThree,four,y\n", text_column="1+2", label_column="3", header="yes").texts[0]
        == "One two"
    )
    assert read(tmp_path, "a.csv", "a+b,a,label\nOne,two,x\nThree,four,y\n", text_column="a+b").texts == [
        "One",
        "Three",
    ]  # its name
    rows = read(
        tmp_path, "a.jsonl", '{"title": "One", "body": null, "label": 1}\n{"body": "two", "label": 0}\n', text_column="title+body"
    )
    assert rows.texts == ["One", "two"]
    said = error_of(tmp_path, "a.jsonl", '{"title": "One", "body": false, "label": 1}\n', text_column="title+body")
    assert "a.jsonl:1: column body: a text is expected, found false" in said
    rows = read(tmp_path, "a.csv", "title,description,label\nOne,two,x\nThree,four,y\n")
    assert rows.texts == ["One", "Three"]
    assert "not read: description (joined by --text-column title+description)" in rows.decided


def test_lines_have_no_columns(tmp_path):
    """A run remembers the columns of its training file; lines of texts have none."""
    flags = {"format": "lines", "text_column": "comment", "label_column": "mood"}
    rows = read(tmp_path, "a.txt", "good\nbad\n", labelled=False, **flags)
    assert rows.texts == ["good", "bad"] and "--text-column comment does not apply to lines" in rows.decided
    rows = read(tmp_path, "a.jsonl", '{"text": "a"}\n', labelled=False, delimiter=";")
    assert "--delimiter ; does not apply to jsonl" in rows.decided


def test_many_keys_make_no_table_of_all_of_them(tmp_path):
    """Rows times keys would be 400 million cells: this would take minutes and all memory."""
    content = "".join(f'{{"text": "a", "label": {i % 2}, "key{i}": 1}}\n' for i in range(20_000))
    rows = read(tmp_path, "a.jsonl", content)
    assert rows.columns == {}
    assert "20,000 other columns not kept for predictions, which is done for 100 at most" in rows.decided
    said = error_of(tmp_path, "a.jsonl", content.replace('"text"', '"words"'))
    assert len(said) < 2000 and "and 19,982 more" in said
