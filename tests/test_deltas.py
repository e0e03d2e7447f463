"""What a run of a method saves: the delta alone, over a base that is known by its bits; several over one base; merged into it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from test_train import result, run
from tiny import converted_directory, converted_resnet, photographs, tiny_body

import convert
import minift
import train
from minift.adapting import adapt
from minift.errors import UserError
from minift.merging import outputs
from minift.methods.surgery import SEGMENT, delta
from minift.pretrained import places, read, read_tensors, write

TEXTS = ["the film was very good", "a bad slow book", "never a good hotel ."]


@pytest.fixture
def base(tmp_path):
    return converted_directory(tmp_path / "base")


def names_saved(directory):
    return read_tensors(directory / "model" / "model.safetensors").keys()


@pytest.mark.parametrize("method", ["lora:rank=2", "bitfit", "probe", "partial:stages=1", "prefix:length=3+ia3", "houlsby:size=2"])
def test_a_run_saves_what_trained_and_predicts_with_it(tmp_path, base, method):
    directory = run(tmp_path, base, method=method, test=tmp_path / "rows.csv")
    tuned = minift.load(directory)
    body = tuned.model.body
    operated = tiny_body()
    adapt(operated, method)
    saved = names_saved(directory)
    assert saved == {*delta(operated), "head.weight", "head.bias"}
    assert body.state_dict().keys() == operated.state_dict().keys()
    assert not any(SEGMENT in name.split(".") for name in saved)
    assert not (directory / "model" / "tokenizer.json").exists()
    trained = sum(read_tensors(directory / "model" / "model.safetensors")[name].numel() for name in saved)
    assert result(directory)["parameters"]["trainable"] == trained
    rows = tuned.task.read(str(tmp_path / "rows.csv"), tuned.layout)
    scores, _ = tuned.score(rows)
    assert scores.metrics == result(directory)["test"]


def test_a_whole_model_is_saved_where_all_of_it_trained_or_none_of_it_lies_on_the_disk(tmp_path, base):
    everything = {*tiny_body().state_dict(), "head.weight", "head.bias"}
    assert names_saved(run(tmp_path, base, "full")) == everything
    directory = run(tmp_path, base, "random", init="random", method="lora:rank=2")
    assert everything < names_saved(directory)
    shutil.rmtree(base)
    assert len(minift.load(directory).predict(TEXTS)) == 3


def test_the_config_says_how_the_delta_was_made(tmp_path, base):
    config = json.loads((run(tmp_path, base, method="lora:rank=2") / "model" / "config.json").read_text())
    method = "lora:rank=2,alpha=16.0,dropout=0.0,rslora=False,sites=query/value,plus=1.0"  # a default may change later
    assert (config["method"], config["delta"], config["base_name"]) == (method, True, str(base))
    assert config["recipe"]["lr"] == 1e-2 and config["task"]["labels"] == ["negative", "positive"] and len(config["base"]) == 64


def refused(call, *parts):
    with pytest.raises(UserError) as caught:
        call()
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value), caught.value


def test_a_delta_may_be_the_base_of_the_next(tmp_path, base):
    first = run(tmp_path, base, "first", method="bitfit")
    second = run(tmp_path, first, "second", method="lora:rank=2")
    assert not any(name.endswith("bias") for name in names_saved(second) if not name.startswith("head"))
    biases = read_tensors(first / "model" / "model.safetensors")
    body = minift.load(second).model.body.state_dict()
    assert torch.equal(body[f"layers.0.attention.query.{SEGMENT}.bias"], biases["layers.0.attention.query.bias"])


def test_another_base_and_a_missing_one_are_refused(tmp_path, base, monkeypatch):
    directory = run(tmp_path, base, method="lora:rank=2")
    expected = minift.load(directory).predict(TEXTS)
    moved = tmp_path / "elsewhere" / "base"
    moved.parent.mkdir()
    assert [place.name for place in places(r"C:\models\base")][1:] == ["base"] * 3
    base.rename(moved)
    refused(lambda: minift.load(directory), "lora:rank=2", str(base), "that is not there", "MINIFT_WEIGHTS")
    monkeypatch.setenv("MINIFT_WEIGHTS", str(moved.parent))
    assert minift.load(directory).predict(TEXTS) == expected
    shutil.rmtree(moved)
    converted_directory(moved, tiny_body(seed=1))
    refused(lambda: minift.load(directory), "sha256", "is another one")


def test_what_is_saved_is_checked(tmp_path, base):
    directory = run(tmp_path, base, method="lora:rank=2") / "model"
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"method": "lora:rank=3"}))
    refused(lambda: read(directory), "layers.0.attention.query.A", "(2, 16)")
    (directory / "config.json").write_text(json.dumps(config | {"method": "bitfit"}))
    refused(lambda: read(directory), "do not fit config.json")


def edited(directory, **changes):
    path = directory / "model" / "config.json"
    original = path.read_text()
    config = json.loads(original)
    for key, value in changes.items():
        config.pop(key) if value is ... else config.update({key: value})
    path.write_text(json.dumps(config))
    return lambda: path.write_text(original)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", ...),
        ("config", {"hidden_size": 16, "stranger": 1}),
        ("architecture", "resnet"),
        ("architecture", None),
        ("base", None),
        ("base_name", 5),
        ("method", "nothing"),
        ("method", 5),
        ("task", {}),
        ("task", {"name": "text-classification", "labels": ["a", "b"], "pool": "x"}),
        ("task", {"name": "text-classification", "labels": ["a", "a"], "pool": "cls"}),
        ("task", {"name": "text-classification", "labels": ["a", "b", "c"], "pool": "cls"}),
        ("settings", None),
        ("settings", {"batch_size": 8, "precision": "foo"}),
        ("stranger", 1),
    ],
)
def test_a_config_that_was_edited_by_hand_is_one_line(tmp_path, run_of_lora, key, value):
    restore = edited(run_of_lora, **{key: value})
    try:
        refused(lambda: minift.load(run_of_lora), "model")
    finally:
        restore()


@pytest.fixture(scope="module")
def run_of_lora(tmp_path_factory):
    directory = tmp_path_factory.mktemp("once")
    return run(directory, converted_directory(directory / "base"), method="lora:rank=2")


def test_a_head_that_is_not_the_labels_is_one_line(tmp_path, run_of_lora):
    file = run_of_lora / "model" / "model.safetensors"
    before, tensors = file.read_bytes(), read_tensors(file)
    for changed in ({"head.weight": tensors["head.weight"][:1]}, {"head.foo": tensors["head.bias"].clone()}):
        save_file(tensors | changed, file)
        refused(lambda: minift.load(run_of_lora), "head.", "the task of config.json")
    file.write_bytes(before)


def test_the_best_epoch_comes_back_although_unfreezing_has_switched_stages_off(tmp_path, base):
    directory = run(tmp_path, base, method="lora:rank=2", unfreeze="gradual", epochs=2)
    assert {name.split(".")[1] for name in names_saved(directory) if name.startswith("layers")} == {"0", "1", "2"}


def test_batch_norms_that_moved_are_saved_and_the_others_are_not(tmp_path):
    photographs(tmp_path / "photos", each=8)
    base = converted_resnet(tmp_path / "resnet")
    flags = ["--task", "image-classification", "--train", str(tmp_path / "photos"), "--model", str(base), "--epochs", "1"]
    for method, moved in (("partial:stages=1", {"blocks.2"}), ("lora:rank=2", set())):
        train.main([*flags, "--method", method, "--precision", "float32", "--out", str(tmp_path / method)])
        saved = names_saved(tmp_path / method)
        assert {".".join(name.split(".")[:2]) for name in saved if "running_mean" in name} == moved
        assert len(minift.load(tmp_path / method).predict([str(tmp_path / "photos" / "ants" / "0.jpg")])) == 1
    config = json.loads((tmp_path / "lora:rank=2" / "model" / "config.json").read_text())
    assert config["preprocessing"]["crop"] == 32


def test_positions_that_a_method_takes_are_counted(tmp_path, base):
    refused(lambda: run(tmp_path, base, method="prompt:length=35"), "--max-length 40", "give 5 or less")
    refused(lambda: run(tmp_path, base, method="prefix:length=35,shift=True"), "give 5 or less")
    run(tmp_path, base, "short", method="prompt:length=20", max_length=20, epochs=1)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("lora:sites=quary", "did you mean query"),
        ("lora:sites=(", "no regular expression"),
        ("lora:sites=query_norm", "known roles are"),
        ("lora+dora", "put dora first"),
        ("dora+lora", "already"),
        ("lora+nothing", "is not known"),
        ("lora+", "'' is not known"),
        ("lora+probe", "leave it out"),
        ("lora:rank=4,rank=8", "given twice"),
        ("lora:sites=query,value", "no comma"),
        ("lora:sites=query/", "before and behind every /"),
        ("lora:rank=100000000000", "65,536"),
        ("houlsby:size=4,reduction=2", "size=4"),
        ("pfeiffer:reduction=nan", "reduction=nan"),
        ("prefix:length=0", "length=0"),
        ("prefix:std=inf", "std=inf"),
        ("lora:sites=attention_norm", "LayerNorm"),
    ],
)
def test_methods_that_cannot_be_are_one_line(tmp_path, base, method, said):
    refused(lambda: run(tmp_path, base, method=method), "--method", said)


# ---- several over one base ----


def test_attached_runs_share_the_base_and_predict_as_they_do_alone(tmp_path, base):
    names = {"lora": "lora:rank=2", "bitfit": "bitfit", "prompt": "prompt:length=3"}
    runs = {name: run(tmp_path, base, name, method=method, max_length=20) for name, method in names.items()}
    alone = {name: minift.load(directory).predict(TEXTS) for name, directory in runs.items()}
    tuned = minift.load(runs["lora"])
    for name in ("bitfit", "prompt"):
        tuned.attach(runs[name], name=name)
    word = tuned.model.body.embeddings.word.weight
    for name in ("bitfit", "prompt", None, "bitfit"):
        tuned.use(name)
        assert tuned.predict(TEXTS) == alone[name or "lora"]
    assert tuned.model.body.embeddings.word.weight.data_ptr() == word.data_ptr()
    refused(lambda: tuned.use("other"), "bitfit, prompt")


def test_attaching_is_refused_for_another_base_and_for_whole_models(tmp_path, base):
    first = run(tmp_path, base, "first", method="lora:rank=2")
    other = run(tmp_path, converted_directory(tmp_path / "base2", tiny_body(seed=1)), "other", method="lora:rank=2")
    full = run(tmp_path, base, "full")
    refused(lambda: minift.load(first).attach(other, "x"), "belongs to", "base2")
    refused(lambda: minift.load(first).attach(full, "x"), "whole model")
    refused(lambda: minift.load(full).attach(first, "x"), "whole model")


def test_names_and_weights_that_cannot_be_are_refused(tmp_path, base):
    first = run(tmp_path, base, "first", method="lora:rank=2")
    tuned = minift.load(first)
    tuned.attach(first, "a")
    for name in ("a", None, "", 5):
        refused(lambda name=name: tuned.attach(first, name), "attach", repr(name))
    refused(lambda: tuned.combine({"a": 1.0}, "a"), "taken")
    refused(lambda: tuned.combine({"a": float("nan")}), "finite")
    refused(lambda: tuned.combine({}), "weight")
    tuned.attach(run(tmp_path, base, "short", method="lora:rank=2", max_length=20), "short")
    refused(lambda: tuned.combine({"a": 1.0, "short": 1.0}), "max_length 40 and 20")
    whole = minift.load(run(tmp_path, base, "random", init="random", method="lora:rank=2"))
    refused(lambda: whole.combine({None: 1.0}), "whole model")


def test_combined_loras_are_the_weighted_sum_of_their_changes(tmp_path, base):
    first = run(tmp_path, base, "first", method="lora:rank=2,sites=query/value")
    second = run(tmp_path, base, "second", method="lora:rank=3,alpha=2,sites=query/feed_forward_hidden", seed=1)
    tuned = minift.load(first)
    tuned.attach(second, "second")
    tuned.combine({None: 0.3, "second": 0.9}, "both")
    plain = read(base).tensors
    whole = [convert.made_plain(read(directory / "model")).tensors for directory in (first, second)]
    tuned.use("both")
    both = tuned.model.body.get_submodule
    for name in ("layers.1.attention.query", "layers.1.attention.value", "layers.2.feed_forward.hidden"):
        W, changed = plain[f"{name}.weight"], both(name)
        expected = W + 0.3 * (whole[0][f"{name}.weight"] - W) + 0.9 * (whole[1][f"{name}.weight"] - W)
        torch.testing.assert_close(changed.merged(W, None)[0], expected, rtol=0, atol=1e-6)
    tuned.combine({"second": 1.0}, "alone")
    tuned.use("alone")
    found = [row["score"] for row in tuned.predict(TEXTS)]
    assert found == pytest.approx([row["score"] for row in minift.load(second).predict(TEXTS)], abs=1e-5)
    tuned.attach(run(tmp_path, base, "third", method="bitfit"), "third")
    refused(lambda: tuned.combine({"third": 1.0}), "bitfit")
    refused(lambda: tuned.combine({"nobody": 1.0}), "nobody")


# ---- merged ----


@pytest.mark.parametrize("method", ["lora:rank=2", "dora:rank=2", "ia3", "ia3+lora", "lora+bitfit", "bitfit", "probe", "full"])
def test_a_merged_run_is_plain_and_computes_the_same(tmp_path, base, method, capsys):
    directory = run(tmp_path, base, method=method, pool="cls")
    capsys.readouterr()
    convert.main([str(directory), "--to", "minift", "--out", str(tmp_path / "plain")])
    said = capsys.readouterr().out
    assert ("48 rows of rows.csv" in said) == method.startswith(("lora", "dora", "ia3")) and "written" in said
    plain = minift.load(tmp_path / "plain")
    assert plain.model.body.state_dict().keys() == tiny_body().state_dict().keys()
    tuned = minift.load(directory)
    one, other = (outputs(t, t.task.read(TEXTS, t.layout, labelled=False)) for t in (tuned, plain))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    run(tmp_path, tmp_path / "plain", "next", epochs=0)


@pytest.mark.parametrize("method", ["full", "lora:rank=2", "bitfit"])
def test_a_run_part_of_the_way_back(tmp_path, base, method):
    """Of the body: (1 - share) theta_0 + share theta; 1 is the run, 0 is what it started from. The head stays."""
    directory = run(tmp_path, base, method=method, pool="cls")

    def written(share):
        out = tmp_path / f"part-{share}"
        convert.main([str(directory), "--to", "minift", "--interpolate", str(share), "--out", str(out)])
        minift.load(out).predict(TEXTS)
        return read_tensors(out / "model.safetensors")

    start, whole, part, back = read(base).tensors, written(1), written(0.25), written(0)
    assert any(not torch.equal(whole[name], theta) for name, theta in start.items())
    for name, theta in start.items():
        torch.testing.assert_close(part[name], 0.75 * theta + 0.25 * whole[name], rtol=1e-6, atol=1e-7)
        assert torch.equal(back[name], theta)
    head = [name for name in whole if name.startswith("head.")]
    assert head and all(torch.equal(whole[name], back[name]) for name in head)


def test_ways_back_that_cannot_be_are_one_line(tmp_path, base):
    directory, elsewhere = run(tmp_path, base), str(tmp_path / "x")
    for share, flags, said in (
        ("0.5", ["--to", "hf"], "--interpolate belongs to --to minift"),
        ("0.5", [], "--interpolate belongs to --to minift"),
        ("2", ["--to", "minift"], "--interpolate 2: a number from 0 to 1"),
        ("nan", ["--to", "minift"], "--interpolate nan: a number from 0 to 1"),
    ):
        refused(lambda: convert.main([str(directory), "--interpolate", share, "--out", elsewhere, *flags]), said)  # noqa: B023
    write(base, replace(read(base), tensors={name: theta + 1 for name, theta in read(base).tensors.items()}))
    refused(lambda: convert.main([str(directory), "--to", "minift", "--interpolate", "0.5", "--out", elsewhere]), "are not those")
    fresh = run(tmp_path, base, "fresh", init="random")
    refused(lambda: convert.main([str(fresh), "--to", "minift", "--interpolate", "0.5", "--out", elsewhere]), "random weights")


@pytest.mark.parametrize("method", ["lora:rank=2", "dora:rank=2,sites=conv1/conv3/shortcut"])
def test_a_merged_resnet_is_plain_and_computes_the_same(tmp_path, method):
    photographs(tmp_path / "photos", each=8)
    base = converted_resnet(tmp_path / "resnet")
    flags = ["--task", "image-classification", "--train", str(tmp_path / "photos"), "--model", str(base), "--epochs", "2"]
    train.main([*flags, "--method", method, "--precision", "float32", "--lr", "1e-2", "--out", str(tmp_path / "run")])
    convert.main([str(tmp_path / "run"), "--to", "minift", "--out", str(tmp_path / "plain")])
    files = [str(tmp_path / "photos" / name / "0.jpg") for name in ("ants", "bees")]
    one, other = (
        outputs(t, t.task.read(files, t.layout, labelled=False))
        for t in (minift.load(tmp_path / "run"), minift.load(tmp_path / "plain"))
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["lora:rank=2", "bitfit"])
def test_over_a_base_in_float16_a_run_is_whole_in_float32(tmp_path, base, method):
    checkpoint = read(base)
    checkpoint.tensors = {name: tensor.half() for name, tensor in checkpoint.tensors.items()}
    write(tmp_path / "half", checkpoint)
    directory = run(tmp_path, tmp_path / "half", method=method)
    convert.main([str(directory), "--to", "minift", "--out", str(tmp_path / "plain")])
    assert {t.dtype for t in read_tensors(tmp_path / "plain" / "model.safetensors").values()} == {torch.float32}
    found = [row["score"] for row in minift.load(tmp_path / "plain").predict(TEXTS)]
    assert found == pytest.approx([row["score"] for row in minift.load(directory).predict(TEXTS)], abs=1e-5)


def test_what_cannot_be_merged_says_why_and_a_run_of_it_is_no_model_to_start_from(tmp_path, base):
    directory = run(tmp_path, base, method="houlsby:size=2")
    refused(lambda: convert.main([str(directory), "--to", "hf", "--out", str(tmp_path / "hf")]), "houlsby", "not linear")
    refused(lambda: convert.main([str(directory), "--to", "minift", "--check", "--out", str(tmp_path / "hf")]), "--check")
    assert not (tmp_path / "hf").exists()
    refused(lambda: run(tmp_path, directory, "next"), "houlsby:reduction=16.0,size=2", "merge")


def test_logits_are_left_uncompared_where_the_training_file_is_gone(tmp_path, base, capsys):
    directory = run(tmp_path, base, method="lora:rank=2")
    (tmp_path / "rows.csv").unlink()
    convert.main([str(directory), "--to", "minift", "--out", str(tmp_path / "plain")])
    assert "not compared: the training rows cannot be read" in capsys.readouterr().out
