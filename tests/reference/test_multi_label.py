"""Multi-label classification: loss and gradients of transformers' heads; its traps, the naive figure beside the right one."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference.heads import batch_for, compare, twins_of
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from tiny import converted_directory, converted_resnet, photographs, rows_file

import minift
import train
from minift import evaluate, predict
from minift.data.balance import positive_weights
from minift.data.labels import read_label_names
from minift.data.texts import Texts
from minift.errors import UserError
from minift.tasks.multi_label_classification import MultiLabelClassification
from minift.tasks.multi_label_image_classification import MultiLabelImageClassification

LABELS = ["x", "y", "z"]


def task_of(labels=LABELS, tuning="one", **fields) -> MultiLabelClassification:
    fields = {"thresholds": [0.5] * len(labels), "tuned_on": 0} | fields
    return MultiLabelClassification(labels=labels, pool="cls", max_length=40, pairs=False, tuning=tuning, **fields)


def sets(rows: int) -> torch.Tensor:
    """Truth values; one row has no label at all."""
    found = torch.rand(rows, 3, generator=torch.Generator().manual_seed(5)) < 0.5
    found[1] = False
    return found


@pytest.mark.parametrize("kind", ["bert", "resnet"])
def test_loss_and_gradients_of_transformers(kind):
    task = task_of()
    if kind == "resnet":
        task = MultiLabelImageClassification(labels=LABELS, pool="mean", thresholds=[0.5] * 3, tuning="one", tuned_on=0)
    model, theirs = twins_of(task, kind, 3, "multi_label_classification")
    gold = sets(4 if kind == "bert" else 3)
    compare(task, model, theirs, kind, gold.double(), batch_for(kind, gold, torch.full((len(gold),), 3.0)))


def test_pos_weight_multiplies_the_positive_term_and_stays_out_of_the_divisor():
    task, gold = task_of(), sets(4)
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([3.0, 0.5, 20.0], dtype=torch.float64)
    batch = batch_for("bert", gold, torch.full((4,), 3.0), weights=weights)
    right = F.binary_cross_entropy_with_logits(logits, gold.double(), pos_weight=weights)
    torch.testing.assert_close(task.loss(logits, batch).sum() / batch.counts.sum(), right, rtol=0, atol=1e-12)
    weighted = torch.where(gold, weights, 1.0)  # divided by as well, it would be another loss
    naive = (F.binary_cross_entropy_with_logits(logits, gold.double(), reduction="none") * weighted).sum() / weighted.sum()
    assert (naive - right).abs() > 0.1


def test_the_loss_is_a_mean_over_rows_and_labels():
    """Not a sum over labels: the same rows with the same labels once more have the same loss and half the gradient of each."""
    task, gold = task_of(), sets(4)
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    data = task.counted((gold.numpy(),), None)
    assert data == {"count": 3}
    batch = batch_for("bert", gold, torch.full((4,), 3.0))
    loss = task.loss(logits, batch).sum() / batch.counts.sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    doubled = task_of([*"abcdef"])
    batch = batch_for("bert", gold.repeat(1, 2), torch.full((4,), 6.0))
    again = doubled.loss(logits.repeat(1, 2), batch).sum() / batch.counts.sum()
    torch.testing.assert_close(again, loss)
    (halves,) = torch.autograd.grad(doubled.loss(torch.cat([logits, logits.detach()], 1), batch).sum() / batch.counts.sum(), logits)
    torch.testing.assert_close(halves, gradient / 2)
    naive = F.binary_cross_entropy_with_logits(logits, gold.double(), reduction="none").sum(1).mean()  # timm's sum over labels
    assert naive > 2.9 * loss


def test_ids_of_classes_are_no_sets():
    """transformers guesses by the type of the labels: integers of several outputs are single labels. Here the shape is asserted."""
    with pytest.raises(ValueError, match=r"logits and targets are expected to be \(B, L\)"):
        task_of().loss(torch.zeros(4, 3), batch_for("bert", torch.zeros(4, dtype=torch.long)))


def test_metrics_are_scikit_learns_and_thresholds_are_the_best_there_are():
    random = np.random.default_rng(0)
    gold = random.random((40, 3)) < [0.5, 0.2, 0.05]
    gold[0], gold[1] = True, False
    logits = torch.from_numpy(random.normal(size=(40, 3)) * 2 + gold * 1.5 - 2)
    p = logits.sigmoid().numpy()
    meters = {}
    for tuning in ("one", "each", "fixed"):
        task = task_of(tuning=tuning)
        meter = task.meter(None)
        for part in (slice(0, 3), slice(3, 40)):
            meter.add(logits[part], batch_for("bert", torch.from_numpy(gold[part])))
        before = meter.metrics()
        assert before == pytest.approx(figures(gold, p, 0.5), abs=1e-12)
        tuned = task.tune(meter)
        after = tuned.meter(None)
        after.merge(meter)
        assert after.metrics() == pytest.approx(figures(gold, p, np.array(tuned.thresholds)), abs=1e-12)
        meters[tuning] = before, after.metrics(), tuned, after
    before, one, tuned, meter = meters["one"]
    grid = np.concatenate([p.ravel() - 1e-9, p.ravel() + 1e-9])  # on both sides of each probability: all that a threshold can do
    assert one["f1_micro"] >= max(figures(gold, p, t)["f1_micro"] for t in grid) - 1e-12 > before["f1_micro"]
    assert len({*tuned.thresholds}) == 1 and tuned.tuned_on == 40
    assert f"chosen on the 40 validation rows, whose F1 is therefore optimistic; at 0.5 these rows have f1_micro " \
           f"{before['f1_micro']:.4f}" in meter.table()  # fmt: skip
    _, each, tuned, _ = meters["each"]
    assert each["f1_macro"] >= one["f1_macro"] and len({*tuned.thresholds}) == 3
    assert meters["fixed"][2] == task_of(tuning="fixed") and "chosen" not in meters["fixed"][3].table()


def figures(gold, p, threshold) -> dict[str, float]:
    predicted = p >= threshold
    return {
        "mean_average_precision": average_precision_score(gold, p),
        "f1_micro": f1_score(gold, predicted, average="micro", zero_division=0),
        "f1_macro": f1_score(gold, predicted, average="macro", zero_division=0),
        "subset_accuracy": accuracy_score(gold, predicted),
    }


def test_where_every_row_is_predicted_the_threshold_is_far_from_the_lowest_score():
    """The lowest score itself would fall out by rounding, in other batches or on another machine."""
    for tuning in ("one", "each"):
        task = task_of(["x"], tuning)
        meter = task.meter(None)
        meter.add(torch.tensor([[0.0], [-1.0], [2.0]]), batch_for("bert", torch.tensor([[True], [True], [True]])))
        assert task.tune(meter).thresholds == [pytest.approx(torch.tensor(-1.0).sigmoid().item() / 2)]


def test_a_label_of_one_row_stays_in_training(tmp_path):
    """Held back, it would be a label that training has not seen."""
    lines = ["text,labels"] + [f"text {i},{'a' if i % 2 else 'a|b'}" for i in range(60)] + ["rare,a|c", "none,"]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    rows = MultiLabelClassification.read(str(tmp_path / "rows.csv"), MultiLabelClassification.LAYOUT())
    assert {*rows.strata()} == {"a", "b", "c", ""}
    from minift.data.splits import split

    for seed in range(20):
        kept, held = split(rows, 0.1, seed)
        assert {one for i in kept for one in rows.labels[i]} == {"a", "b", "c"} and len(held) == 6


def test_pos_weights():
    gold = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
    assert positive_weights(gold).tolist() == [3, 1, 1]
    options = type("Options", (), {"pos_weight": "2.5"})
    assert task_of().counted((gold,), options)["weights"].tolist() == [2.5] * 3
    for wrong in ("heavy", "0", "-1", "inf", "nan"):
        options = type("Options", (), {"pos_weight": wrong, "label_names": None, "thresholds": "one"})
        with pytest.raises(UserError, match=f"--pos-weight {wrong}: expected none, balanced or a number above 0"):
            MultiLabelClassification.fields_of(Texts("here", ["a"], labels=[["x"]]), options)


# ---- as a user ----


@pytest.fixture
def base(tmp_path):
    return converted_directory(tmp_path / "base", pool="mean")


def sets_file(path, write=lambda cells: "|".join(cells), names=("good", "very")):
    """Texts by the words in them, as `a|b` cells, lists or columns."""
    rows = []
    for line in rows_file(path.with_suffix(".csv")).read_text().splitlines()[1:]:
        text = line.rpartition(",")[0]
        rows.append((text, [name for name, word in zip(names, ("good", "very"), strict=True) if word in text]))
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text, "labels": cells}) + "\n" for text, cells in rows))
    elif write is None:
        path.write_text("text,good,very\n" + "".join(f"{t},{int('good' in c)},{int('very' in c)}\n" for t, c in rows))
    else:
        path.write_text("text,labels\n" + "".join(f"{text},{write(cells)}\n" for text, cells in rows))
    return path


def run(tmp_path, base, data, **flags):
    arguments = ["--task", "multi-label-classification", "--train", str(data), "--model", str(base), "--precision", "float32"]
    shared = {"out": tmp_path / "run", "epochs": 6, "batch_size": 8, "lr": 1e-2}
    for flag, value in (shared | flags).items():
        arguments += [f"--{flag.replace('_', '-')}", str(value)]
    train.main(arguments)
    return json.loads((tmp_path / "run" / "result.json").read_text())


def test_three_ways_to_write_labels_are_one(tmp_path, base):
    results = []
    for i, (name, write, flags) in enumerate(
        [("a.csv", "|".join, {}), ("b.jsonl", None, {}), ("c.csv", None, {"label_column": "good,very"})]
    ):
        place = tmp_path / str(i)
        place.mkdir()
        result = run(place, base, sets_file(place / name, write), epochs=2, **flags)
        results.append({split: result[split] for split in ("valid",)})
    assert results[0] == results[1] == results[2]


def test_a_run_from_file_to_prediction(tmp_path, base, capsys):
    data = sets_file(tmp_path / "rows.csv")
    result = run(tmp_path, base, data, pos_weight="balanced", epochs=30)
    said = capsys.readouterr().out
    assert "2 labels, 1.27 a training row; 0 of the 44 have none" in said
    assert "weights of having a label in training: good 1, very 0.294" in said
    assert "thresholds chosen on the 4 validation rows" in said and set(result["valid"]) >= {"mean_average_precision", "f1_micro"}
    tuned = minift.load(tmp_path / "run")
    assert tuned.task.tuned_on == 4 and tuned.task.thresholds[0] != 0.5
    for text, good in (("the film was very very good", True), ("the film was very bad", False)):
        (found,) = tuned.predict([text])
        assert ("good" in found["labels"]) == good
        assert {*found["labels"]} == {one for one, p in found["probabilities"].items() if p >= tuned.task.thresholds[0]}
    predict.main([str(tmp_path / "run"), "the film was very bad"])
    assert "good" not in capsys.readouterr().out
    assert tuned.task.show({"labels": [], "probabilities": {}}) == "no label"
    evaluate.main([str(tmp_path / "run"), "--data", str(data)])
    said = capsys.readouterr().out
    assert "average precision" in said and "thresholds chosen on the 4 validation rows" in said


def test_names_by_id(tmp_path, base, capsys):
    """The file's labels are numbers, as GoEmotions has them; what is predicted and stored has names."""
    data = sets_file(tmp_path / "rows.csv", names=("0", "2"))
    (tmp_path / "names.txt").write_text("tasty\nnever seen\nstrong\n")
    run(tmp_path, base, data, label_names=tmp_path / "names.txt", epochs=1, thresholds="fixed")
    said = capsys.readouterr().out
    assert "no training row has the label never seen, which" in said and "tasty" in said
    tuned = minift.load(tmp_path / "run")
    assert tuned.task.labels == ["tasty", "never seen", "strong"] and tuned.task.written == ["0", "1", "2"]
    assert {*tuned.predict(["good"])[0]["probabilities"]} == {*tuned.task.labels}
    (tmp_path / "names.txt").unlink()  # the run needs it no more
    evaluate.main([str(tmp_path / "run"), "--data", str(data)])


def test_without_validation_rows_nothing_is_tuned(tmp_path, base, capsys):
    run(tmp_path, base, sets_file(tmp_path / "rows.csv"), valid="none", epochs=1)
    assert "no validation rows: the threshold stays at 0.5" in capsys.readouterr().out
    assert minift.load(tmp_path / "run").task.thresholds == [0.5, 0.5]


def test_images(tmp_path, capsys):
    photographs(tmp_path / "pictures", classes=("ants", "bees", "neither"))
    lines = ["path,labels"]
    for name in ("ants", "bees", "neither"):
        lines += [f"pictures/{name}/{i}.jpg,{'' if name == 'neither' else name}" for i in range(10)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    base = converted_resnet(tmp_path / "base")
    flags = {"task": "multi-label-image-classification", "train": tmp_path / "rows.csv", "model": base, "workers": 0, "epochs": 1}
    arguments = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    train.main([*arguments, "--out", str(tmp_path / "run"), "--precision", "float32"])
    assert "2 labels, 0.67 a training row; 9 of the 27 have none" in capsys.readouterr().out
    with pytest.raises(UserError, match="a directory, whose folders are classes; for this task a table is expected"):
        train.main([*arguments, "--train", str(tmp_path / "pictures"), "--out", str(tmp_path / "other")])
    with pytest.raises(UserError, match="--mixup belongs to image-classification, and the task is multi-label"):
        train.main([*arguments, "--mixup", "0.2"])


def test_mistakes(tmp_path, base):
    data = sets_file(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match=r"one label is expected, found .*; for several labels a row: --task multi-label-class"):
        train.main(["--train", str(data), "--model", str(base), "--out", str(tmp_path / "run")])
    data.write_text(data.read_text() + '{"text": "a", "labels": null}\n')
    with pytest.raises(UserError, match=r"rows.jsonl:49: a row without a label"):
        run(tmp_path, base, data)
    with pytest.raises(UserError, match="is a model of images; expected one of texts"):
        run(tmp_path, converted_resnet(tmp_path / "resnet"), data)


def test_the_file_of_names(tmp_path):
    place = tmp_path / "names.json"
    for content in ('["a", "b"]', '{"1": "b", "0": "a"}', '{"id2label": {"0": "a", "1": "b"}, "hidden_size": 3}'):
        place.write_text(content)
        assert read_label_names(str(place)) == {"0": "a", "1": "b"}
    place.write_text('{"n01440764": "tench", "n01443537": "goldfish"}')
    assert list(read_label_names(str(place)).items()) == [("n01440764", "tench"), ("n01443537", "goldfish")]
    text = tmp_path / "names.txt"
    text.write_bytes(b"\xef\xbb\xbfa\r\nb c\r\n")
    assert read_label_names(str(text)) == {"0": "a", "1": "b c"}
    for content, message in (
        ("a\n\nc\n", "names.txt:2: a name is expected, found ''|names.txt:2: a name is expected"),
        ("a\nb\na\n", r"names.txt:3: the name 'a' stands for another label too \(.*names.txt:1\)"),
        ("a\n", "names.txt: 1 name; two or more are expected"),
    ):
        text.write_text(content)
        with pytest.raises(UserError, match=message):
            read_label_names(str(text))
    for content, message in (("{", "not valid JSON"), ("3", "a list of names, or an object"), ('["a", 2]', "a name is expected")):
        place.write_text(content)
        with pytest.raises(UserError, match=message):
            read_label_names(str(place))
    with pytest.raises(UserError, match="no such file"):
        read_label_names(str(tmp_path / "nowhere.txt"))
