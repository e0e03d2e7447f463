"""minift.report: what stands on the page is what the run has recorded, and what comes from data stays text."""

import json
import math
import re
import shutil
from html.parser import HTMLParser

import pytest
from contract.tasks import converted_bert, questions_file, sentences_file
from PIL import Image
from tiny import converted_resnet, photographs, rows_file

import minift
import train
from minift import page, report
from minift.errors import UserError
from minift.methods.surgery import plain, plain_modules
from minift.page import Chart, Grid, Row, Text
from minift.pretrained import read
from minift.tables import bars
from minift.tasks.task import Mark


class Page(HTMLParser):
    """The elements of a page and its words; fails where an element is closed that is not open."""

    VOID = ("meta", "wbr", "img", "path", "use", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open += [] if tag in self.VOID else [tag]

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def trained(place, data, model, *more, task="text-classification"):
    flags = ["--precision", "float32", "--batch-size", "8", "--epochs", "2", "--lr", "1e-2", "--quiet", "--out", str(place / "run")]
    train.main(["--task", task, "--train", str(data), "--model", str(model), *flags, *more])
    return place / "run"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return converted_bert(tmp_path_factory.mktemp("base") / "bert")


@pytest.fixture(scope="module")
def gradual(tmp_path_factory, bert):
    place = tmp_path_factory.mktemp("gradual")
    rows = rows_file(place / "rows.csv")
    more = "".join(f'"<script>alert({i})</script> & ""$x_{i}$"" good",<b>positive</b>\n' for i in range(12))
    rows.write_text(rows.read_text() + more)
    return trained(place, rows, bert, "--unfreeze", "gradual", "--layer-decay", "0.5")


def parts(runs, worst=0):
    return {section.title: section.parts for section in page.sections(page.find_runs(map(str, runs)), worst, "cpu")}


def test_the_charts_hold_what_was_logged(gradual):
    found = {chart.title: chart for chart in parts([gradual])["Curves"]}
    events = [json.loads(line) for line in (gradual / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["split"] == "train"]
    training, validation = found["Loss"].lines
    assert (training.x, training.y) == ([event["step"] for event in steps], [event["loss"] for event in steps])
    assert validation.y == [event["loss"] for event in events if event["split"] == "valid"]
    assert {line.label for line in found["Validation: metrics"].lines} == {"accuracy", "f1_macro", "matthews"}
    rates, last = found["Learning rate"], len(steps) // 2
    head, layer = (next(line for line in rates.lines if line.label == name) for name in ("head", "layer 2"))
    assert len(rates.lines) == 2 and head.y == pytest.approx([event["lr"] for event in steps])  # two epochs reach one stage
    assert all(map(math.isnan, layer.y[:last])) and layer.y[last:] == pytest.approx([rate / 2 for rate in head.y[last:]])
    assert rates.marks == [(1, "+ head"), (last + 1, "+ layer 2")]


def test_the_grids_hold_the_result(gradual):
    result, found = json.loads((gradual / "result.json").read_text()), parts([gradual])
    (figures,) = (part for part in found["Results"] if isinstance(part, Grid) and part.header[:2] == ["run", "split"])
    assert figures.rows == [["run", "valid", *result["valid"].values()]]
    labels, confusion = found["By label"]
    assert [row[0] for row in labels.rows] == confusion.header[1:] == ["<b>positive</b>", "negative", "positive"]
    assert sum(sum(row[1:]) for row in confusion.rows) == sum(row[-1] for row in labels.rows)
    stages, _ = found["Stages"]
    total = {name: sum(row[i] for row in stages.rows) for i, name in ((3, "total"), (4, "trainable"))}
    assert total == {name: result["parameters"][name] for name in total}


@pytest.mark.parametrize("method", ["full", "lora:rank=2", "bitfit"])
def test_drift_is_how_far_the_weights_have_moved(tmp_path, bert, method):
    more = ("--method", method, "--unfreeze", "gradual", "--valid", "none")
    (recorded,) = page.find_runs([str(trained(tmp_path, rows_file(tmp_path / "rows.csv"), bert, *more))])
    found, _ = page.drift(recorded)
    body, before = minift.load(recorded.directory).model.body, read(bert).tensors
    for stage, names in body.stages.items():
        change = start = 0.0
        for name in [name for name in before if name.startswith(tuple(f"{one}." for one in names))]:
            owner, _, leaf = name.rpartition(".")
            module, after = plain_modules(body)[owner], getattr(plain(plain_modules(body)[owner]), leaf)
            if hasattr(module, "A") and leaf == "weight":
                after = module.merged(after, None)[0]
            change += (after - before[name]).double().square().sum().item()
            start += before[name].double().square().sum().item()
        assert found[stage] == pytest.approx(100 * math.sqrt(change / start), rel=1e-5)
    assert found["layer 2"] > 0 == found["embeddings"]


def test_the_page_is_whole_and_what_comes_from_data_is_text(gradual):
    pytest.importorskip("matplotlib")
    report.main([str(gradual), "--device", "cpu"])
    text = (gradual / "report.html").read_text(encoding="utf-8")
    found = Page(text)
    assert not [attributes for tag, attributes in found.elements if tag in ("script", "link", "b")]
    outside = [value for _, attributes in found.elements for name, value in attributes.items() if name in ("src", "href")]
    assert all(value.startswith(("#", "data:")) for value in map(str, outside))
    assert sum(tag == "svg" for tag, _ in found.elements) == 4
    assert any("<b>positive</b>" in words for words in found.words)
    assert not re.findall("#ab0c..", text), "a colour that is no variable of the page"
    grids = [at for at, (tag, _) in enumerate(found.elements) if tag == "table"]
    for tag, attributes in (found.elements[at - 1] for at in grids):  # a wide table scrolls, by the keyboard too, and not the page
        assert (tag, attributes) == ("div", {"class": "scroll", "tabindex": "0"})
    identifiers = [value for _, attributes in found.elements for name, value in attributes.items() if name == "id"]
    shared = {one for one in identifiers if identifiers.count(one) > 1}
    assert not [one for one in shared if f"#{one}" in text], "a chart would use a part of another one"


def test_without_matplotlib_it_is_printed(gradual, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    report.main([str(gradual), "--worst", "3", "--device", "cpu"])
    said = capsys.readouterr().out
    for words in ("==== Curves", "==== Stages", "layer 2", "step 8: + layer 2", "==== Rows of the largest loss", "matplotlib"):
        assert words in said, words
    with pytest.raises(UserError, match="needs matplotlib"):
        report.main([str(gradual), "--out", str(tmp_path / "page.html")])


def test_several_runs_show_the_flags_in_which_they_differ(gradual, bert, tmp_path):
    other = trained(tmp_path, gradual.parent / "rows.csv", bert, "--seed", "7")
    (shutil.copytree(gradual, tmp_path / "seeds" / "seed-9"), shutil.copytree(other, tmp_path / "seeds" / "seed-10"))
    runs = page.find_runs([str(tmp_path / "seeds")])
    assert [run.name for run in runs] == ["seed-9", "seed-10"]
    found = parts([tmp_path / "seeds"])
    (grid,) = found["Settings"]
    assert grid.header == ["flag", "seed-9", "seed-10"]
    assert grid.rows == [["layer-decay", "0.5", "1.0"], ["unfreeze", "gradual", ""], ["seed", "42", "7"]]
    (accuracy,) = (chart for chart in found["Curves"] if chart.title == "Validation: accuracy")
    assert [(line.label, line.colour) for line in accuracy.lines] == [("seed-9", 0), ("seed-10", 1)]
    titles = [chart.title for chart in found["Curves"]]
    assert {"Learning rate of seed-9", "Learning rate of seed-10"} <= {*titles}
    shutil.copytree(other, tmp_path / "seeds" / "seed-11")
    titles = [chart.title for chart in parts([tmp_path / "seeds"])["Curves"]]
    assert "Learning rate of seed-10, seed-11" in titles  # which have the same


def test_the_worst_rows_of_texts(gradual):
    said, *rows = parts([gradual], worst=4)["Rows of the largest loss"]
    assert len(rows) == 4 and "scored again" in said.text
    tuned = minift.load(gradual)
    (recorded,) = page.find_runs([str(gradual)])
    assert "cut by 40: 0." in said.text
    assert f"{recorded.result['valid']['loss']:.4f}, in the run {recorded.result['valid']['loss']:.4f}" in said.text
    losses = []
    for row in rows:
        ((_, ((text, _, _),)),) = row.fields
        (p,) = tuned.predict([text])
        label = re.match(r"line \d+: (.+?) [01]\.\d{3}", row.said)[1]
        losses.append(-math.log(p["probabilities"][label]))
        assert float(row.said.rpartition("; loss ")[2]) == pytest.approx(losses[-1], abs=0.006)
    assert losses == sorted(losses, reverse=True)


def test_the_worst_rows_of_other_tasks(tmp_path, bert):
    run = trained(tmp_path / "ner", sentences_file(tmp_path / "rows.conll"), bert, "--epochs", "1", task="token-classification")
    _, *rows = parts([run], worst=2)["Rows of the largest loss"]
    assert {kind for row in rows for _, value in row.fields for _, kind, _ in value} & {"right", "predicted", "both"}
    run = trained(tmp_path / "qa", questions_file(tmp_path / "rows.jsonl"), bert, "--max-length", "20", task="question-answering")
    assert any(
        kind for row in parts([run], worst=4)["Rows of the largest loss"][1:] for _, value in row.fields for _, kind, _ in value
    )
    photos, base = photographs(tmp_path / "photos"), converted_resnet(tmp_path / "resnet")
    run = trained(tmp_path / "images", photos, base, "--epochs", "1", "--workers", "0", task="image-classification")
    _, row = parts([run], worst=1)["Rows of the largest loss"]
    path = row.fields[0][1]
    assert Image.open(path).size[0] > 0 and page.row_as_html(row).count("data:image/jpeg;base64,") == 1


def test_what_is_gone_is_left_out_and_said(gradual, tmp_path):
    run = tmp_path / "moved"
    shutil.copytree(gradual, run)
    record = json.loads((run / "config.json").read_text())
    record["given"]["train"] = str(tmp_path / "rows.csv")
    (run / "config.json").write_text(json.dumps(record))
    (said,) = parts([run], worst=3)["Rows of the largest loss"]
    assert said.text.startswith("Left out: ") and "rows.csv" in said.text
    shutil.copy(gradual.parent / "rows.csv", tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open("a") as file:
        file.write("good,positive\n")
    (said,) = parts([run], worst=3)["Rows of the largest loss"]
    assert "data has changed" in said.text
    (run / "result.json").unlink()
    assert "not finished" in parts([run])["Results"][0].text and "By label" not in parts([run])
    with pytest.raises(UserError, match="no run in it"):
        page.find_runs([str(tmp_path / "nowhere")])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3')  # a line that is being written
    page.find_runs([str(run)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:\d+: expected"):
        page.find_runs([str(run)])


def test_penalties_that_were_tried_are_shown(tmp_path, bert):
    more = ("--method", "probe", "--solver", "lbfgs", "--pool", "mean")
    data = rows_file(tmp_path / "rows.csv")
    flags = ["--model", str(bert), "--precision", "float32", "--quiet", "--out", str(tmp_path / "run")]
    train.main(["--train", str(data), *flags, *more])
    found = parts([tmp_path / "run"], worst=1)
    tried = [json.loads(line)["l2"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (grid,) = (part for part in found["Results"] if isinstance(part, Grid) and part.header[0] == "run: l2")
    assert [float(row[0]) for row in grid.rows] == pytest.approx(tried, rel=1e-5) and "Curves" not in found


def test_pieces_are_the_text_again_and_carry_the_spans():
    text = "Ada moved to Turin"
    found = page.pieces(text, [Mark(0, 3, "PER"), Mark(13, 18, "LOC")], [Mark(0, 3, "PER"), Mark(4, 9, "LOC")])
    assert [one for one in found if one[1]] == [("Ada", "both", "PER"), ("moved", "predicted", "LOC"), ("Turin", "right", "LOC")]
    assert "".join(piece for piece, _, _ in found) == text
    long = "x" * 5000 + "Ada" + "y" * 5000
    found = page.pieces(long, [Mark(5000, 5003, "PER")], [])
    assert ("Ada", "right", "PER") in found and 600 <= sum(len(piece) for piece, _, _ in found) < 1500


def test_long_curves_are_means():
    steps = [{"step": i + 1, "loss": float(i % 2)} for i in range(3000)]
    x, y = page.thinned([*steps, {"step": 3001, "loss": None}])
    assert len(x) == 300 and y == [0.5] * 300 and x[0] == 5.5


def test_stages_that_follow_one_another_are_said_together():
    order = ["embeddings", "layer 0", "layer 1", "layer 2", "head"]
    assert page.spans(["layer 1", "layer 0", "head"], order) == "layer 0 to layer 1, head"


def test_a_short_curve_shows_every_value():
    assert bars([0.0, 1.0, 2.0]) == " ▄█"


def test_every_part_is_shown_in_both():
    shown = (
        Text("a < b"),
        Grid(["<x>", "y"], [[1.5, None], [0, "z" * 50]], bars=(0,), heat=(0,)),
        Row("said", [("", [("a & b", "both", "<n>")])]),
    )
    for part in shown:
        page.part_as_text(part)
        Page(page.part_as_html(part))
    assert "a &lt; b" in page.part_as_html(shown[0]) and "&lt;n&gt;" in page.part_as_html(shown[2])
    chart = Chart("Loss", "step", "loss", [page.Line("a", [1, 2], [1.0, math.nan])])
    assert "step 1 to 1: from 1 to 1" in page.part_as_text(chart)


def test_ticks_are_whole_numbers_beside_the_axis():
    assert [page.with_exponent(y, 2.1e-4) for y in (0, 1e-20, 2.5e-5, 2e-4, -1e-4)] == ["0", "0", "0.25e-4", "2e-4", "-1e-4"]
    line = page.Line("head", [1, 2, 3], [0, 2e-4, 1e-4])
    rates = page.Chart("Learning rate", "step", "learning rate", [line], [(2, "+ layer 5")])
    axes = page.drawn(rates).axes[0]
    assert axes.yaxis.get_major_formatter()(1e-4, None) == "1e-4" and axes.get_ylim()[1] > 2.5e-4  # room for what is written above
    usual = page.drawn(page.Chart("Loss", "step", "loss", [page.Line("valid", [1, 2], [0.7, 0.5])])).axes[0]
    assert usual.yaxis.get_major_formatter().get_offset() == ""


def test_a_flag_is_not_broken_at_its_hyphens():
    shown = page.part_as_html(page.Text("Given: --train-rows 300 --out a--b"))
    assert shown == "<p>Given: <span class=flag>--train-rows</span> 300 <span class=flag>--out</span> a--b</p>"
