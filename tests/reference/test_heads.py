"""Every head against transformers: what it has saved comes in as a run, what a run has learned goes out, with the same outputs."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from contract.tasks import BASES, CASES
from reference.test_bytelevel import checkpoint_directory
from reference.test_huggingface_images import saved as saved_resnet
from reference.test_huggingface_images import tiny as tiny_resnet_of_transformers
from safetensors.torch import load_file, save_file
from tiny import CONFIG, TEXTS, huggingface_directory, photographs, randomise_norms, tiny_efficientnet, write_json
from twins import close

import convert
import minift
import train
from minift.data.batching import Batch
from minift.errors import UserError
from minift.formats.bytelevel import END_OF_TEXT
from minift.formats.heads import HEADS, OURS
from minift.formats.huggingface import efficientnet_out
from minift.pretrained import read
from minift.tasks import TASKS
from minift.tasks.task import task_from

TAGS = ["O", "B-X", "I-X", "B-Y", "I-Y"]
# Task -> what transformers' config has besides
CONFIGS = {
    "text-classification": {"problem_type": "single_label_classification", "id2label": {0: "bad", 1: "good", 2: "so so"}},
    "multi-label-classification": {"problem_type": "multi_label_classification", "id2label": {0: "bad", 1: "good", 2: "slow"}},
    "text-regression": {"problem_type": "regression", "num_labels": 1},
    "token-classification": {"id2label": dict(enumerate(TAGS))},
    "question-answering": {},
    "masked-lm": {},
    "image-classification": {"problem_type": "single_label_classification", "id2label": {0: "ants", 1: "bees", 2: "1"}},
    "multi-label-image-classification": {"problem_type": "multi_label_classification", "id2label": {0: "ants", 1: "large"}},
}
PREFIX = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "gpt2": "GPT2"}
PREFIX |= {"resnet": "ResNet", "efficientnet": "EfficientNet"}
IMAGES = ("resnet", "efficientnet")
KINDS = [(task, kind) for task in CONFIGS if task in TASKS for kind in HEADS[task].names]


def fine_tuned(directory: Path, task: str, kind: str, **config) -> Path:
    """A directory that transformers has saved, every weight random."""
    make = getattr(transformers, f"{PREFIX[kind]}For{HEADS[task].kind}")
    config = CONFIGS[task] | config
    if "id2label" in config:
        config = {"label2id": {label: i for i, label in config["id2label"].items()}} | config
    if kind == "resnet":
        return saved_resnet(directory, randomised(tiny_resnet_of_transformers(make, **config)))
    if kind == "efficientnet":
        theirs = make(transformers.EfficientNetConfig(**efficientnet_out(tiny_efficientnet().config), **config))
        randomise_norms(theirs, std=0.3, batches=4)
        return saved_resnet(directory, randomised(theirs))
    if kind == "bert":
        huggingface_directory(directory)
        theirs = transformers.BertConfig(**asdict(CONFIG), **config)
    else:
        checkpoint_directory(directory, kind, **({"pad_token": END_OF_TEXT} if kind == "gpt2" else {}))
        theirs = transformers.AutoConfig.from_pretrained(directory, **config)
    (directory / "model.safetensors").unlink()
    randomised(make(theirs)).save_pretrained(directory)
    return directory


def randomised(model):
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if (parameter.ndim > 1 and "embeddings" not in name) or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def theirs_of(directory: Path, task: str, dtype=torch.float64):
    """transformers' model, loaded without a word of missing or left out tensors."""
    model, loading = getattr(transformers, f"AutoModelFor{HEADS[task].kind}").from_pretrained(directory, output_loading_info=True)
    assert not any(loading.values()), loading
    return model.to(dtype).eval()


def outputs(directory: Path, dtype=torch.float64):
    """(inputs -> outputs of every unit and token of a run, the task)"""
    checkpoint = read(directory)
    task, body = task_from(checkpoint.task), checkpoint.tuned_body(dtype).eval()
    head = task.head(body).to(dtype).eval()
    head.load_state_dict({name: tensor.to(dtype) for name, tensor in checkpoint.head.items()})

    def call(*inputs):
        if hasattr(head, "logits"):  # of every token; as it stands it gives the losses
            with torch.inference_mode():
                return head.logits(body(*inputs).hidden)
        everywhere = () if inputs[0].ndim == 4 else (torch.arange(inputs[0].shape[1]).expand_as(inputs[0]), inputs[0])
        with torch.inference_mode():
            return head(body(*inputs), Batch(inputs, everywhere, np.arange(len(inputs[0])), None))

    return call, task


def inputs_of(kind: str, vocabulary: int, dtype=torch.float64):
    if kind in IMAGES:
        return (torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(1), dtype=dtype),)
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(12) < torch.tensor([12, 7, 3, 1])[:, None]
    pad = 1 if "roberta" in kind else 0
    tokens = torch.randint(5, vocabulary, (4, 12), generator=generator).masked_fill(~mask, pad)
    if kind not in ("bert", "roberta", "xlm-roberta"):
        return tokens, mask
    types = (torch.arange(12) >= 5).long().expand(4, 12) if kind == "bert" else torch.zeros_like(tokens)
    return tokens, mask, types


def assert_equal(run: Path, theirs: Path, task: str, kind: str, dtype=torch.float64, atol=1e-10):
    ours, _ = outputs(run, dtype)
    model = theirs_of(theirs, task, dtype)
    given = inputs_of(kind, getattr(model.config, "vocab_size", 0), dtype)
    with torch.inference_mode():
        named = zip(("attention_mask", "token_type_ids"), given[1:])  # noqa: B905
        made = model(given[0], **{name: tensor.long() for name, tensor in named})
    expected = torch.stack([made.start_logits, made.end_logits], -1) if "start_logits" in made else made.logits
    found = ours(*given)
    assert found.shape == expected.shape and expected.std() > 0.01
    kept = given[1] if found.ndim == 3 else ...
    close(found[kept], expected[kept], task, atol)


@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_what_transformers_has_fine_tuned_comes_in_as_a_run_and_goes_out_again(tmp_path, task, kind, capsys):
    source = fine_tuned(tmp_path / "source", task, kind)
    assert convert.main([str(source), "--out", str(tmp_path / "run"), "--check"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ +head|^  head ", said, re.MULTILINE) and f"run      {task}" in said and "dropped  nothing" in said
    assert f"minift.predict {tmp_path / 'run'}" in said
    assert_equal(tmp_path / "run", source, task, kind)
    assert_equal(tmp_path / "run", source, task, kind, torch.float32, 2e-5)
    stored = read(tmp_path / "run").task
    assert stored["name"] == task and stored.get("labels", []) == list(CONFIGS[task].get("id2label", {}).values())

    assert convert.main([str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "back"), "--check"]) == 0
    first, second = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    differ = {name for name in first.keys() ^ second.keys() if "decoder." not in name}  # which is tied
    assert not differ and all(torch.equal(first[name], second[name]) for name in first.keys() & second.keys())
    one, other = (transformers.AutoConfig.from_pretrained(place) for place in (source, tmp_path / "back"))
    assert one.architectures == other.architectures
    for name in ("id2label", "label2id", "problem_type", "num_labels"):
        assert getattr(one, name) == getattr(other, name), name
    theirs_of(tmp_path / "back", task)

    convert.main([str(tmp_path / "back"), "--out", str(tmp_path / "again")])
    assert read(tmp_path / "again").task == stored


TEXT_TASKS = [(task, kind) for task, kind in KINDS if kind in ("bert", "roberta", "gpt2")]


@pytest.mark.parametrize(("task", "kind"), TEXT_TASKS)
def test_predictions_of_such_a_run_are_those_of_transformers(tmp_path, task, kind):
    """In float32, through the tokenizers, by minift.load."""
    source = fine_tuned(tmp_path / "source", task, kind)
    convert.main([str(source), "--out", str(tmp_path / "run")])
    tuned, model = minift.load(tmp_path / "run", "cpu"), theirs_of(source, task, torch.float32)
    apart = {"add_prefix_space": True} if kind != "bert" and task == "token-classification" else {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **apart)

    def logits(*texts, **how):
        encoded = tokenizer(*texts, return_tensors="pt", **how)
        with torch.inference_mode():
            return model(**encoded), encoded

    if task == "masked-lm":
        mask = "[MASK]" if kind == "bert" else "<mask>"
        for made, text in zip(
            tuned.predict([f"the film was {mask} good", f"{mask} again"]), ("the film was X good", "X again"), strict=True
        ):
            theirs, encoded = logits(text.replace("X", tokenizer.mask_token))
            at = int((encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero())
            p, best = theirs.logits[0, at].softmax(-1).max(-1)
            assert made["masks"][0]["token"].strip() == tokenizer.decode([int(best)]).strip()
            assert made["masks"][0]["score"] == pytest.approx(float(p), abs=1e-5)
        return
    if task == "question-answering":
        questions = [{"question": "was the film good ?", "context": "the food was fast . the film was very good"}]
        (made,) = tuned.predict(questions)
        theirs, encoded = logits(questions[0]["question"], questions[0]["context"])
        start, end = theirs.start_logits[0], theirs.end_logits[0]
        inside = torch.tensor([number == 1 for number in encoded.sequence_ids(0)])
        legal = (inside[:, None] & inside[None]).triu()
        scores = (start[:, None] + end[None]).masked_fill(~legal, -torch.inf)
        first, last = divmod(int(scores.argmax()), len(start))
        a, b = encoded.token_to_chars(0, first).start, encoded.token_to_chars(0, last).end
        assert made["answer"] == questions[0]["context"][a:b] and (made["start"], made["end"]) == (a, b)
        return
    made = tuned.predict(TEXTS)
    if task == "token-classification":
        for text, one in zip(TEXTS, made, strict=True):
            theirs, encoded = logits(text.split(), is_split_into_words=True)
            words = encoded.word_ids(0)
            first = [words.index(i) for i in range(len(text.split()))]
            p = theirs.logits[0, first].softmax(-1)
            assert one["tokens"] == text.split()
            for entity in one["entities"]:
                assert text[entity["start"] : entity["end"]] == entity["text"] and 0 < entity["score"] <= 1
            best = [model.config.id2label[i] for i in p.argmax(-1).tolist()]
            allowed = all(not tag.startswith("I-") or (i and best[i - 1][2:] == tag[2:]) for i, tag in enumerate(best))
            assert one["tags"] == best or not allowed
        return
    theirs, _ = logits(TEXTS, padding=True)
    if task == "text-regression":
        assert [one["value"] for one in made] == pytest.approx(theirs.logits[:, 0].tolist(), abs=1e-4)
        return
    p = theirs.logits.softmax(-1) if task == "text-classification" else theirs.logits.sigmoid()
    for one, row in zip(made, p.tolist(), strict=True):
        assert list(one["probabilities"].values()) == pytest.approx(row, abs=1e-5)
        if task == "multi-label-classification":
            assert {*one["labels"]} == {model.config.id2label[i] for i, value in enumerate(row) if value >= 0.5}


def test_a_language_model_comes_in_as_a_body_or_as_a_run_where_it_is_asked_for_and_goes_out_again(tmp_path):
    if "causal-lm" not in TASKS:
        pytest.skip("no task has this head")
    source = checkpoint_directory(tmp_path / "source", "gpt2", pad_token=END_OF_TEXT)
    theirs = transformers.AutoConfig.from_pretrained(source)
    (source / "model.safetensors").unlink()
    randomised(transformers.GPT2LMHeadModel(theirs)).save_pretrained(source)
    for flags, task in (([], None), (["--as", "run"], "causal-lm"), (["--as", "body"], None)):
        assert convert.main([str(source), "--out", str(tmp_path / f"{task}{flags}"), *flags, "--check"]) == 0
        assert (read(tmp_path / f"{task}{flags}").task or {}).get("name") == task
    run = tmp_path / "causal-lm['--as', 'run']"
    assert convert.main([str(run), "--to", "hf", "--out", str(tmp_path / "back"), "--check"]) == 0
    first, second = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    theirs_of(tmp_path / "back", "causal-lm")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    convert.main([str(tmp_path / "back"), "--out", str(tmp_path / "again")])  # which config.json of ours says to be a run
    assert read(tmp_path / "again").task == read(run).task


@pytest.mark.parametrize("task", ["image-classification", "multi-label-image-classification"])
def test_predictions_of_images_are_those_of_transformers(tmp_path, task):
    source = fine_tuned(tmp_path / "source", task, "resnet")
    convert.main([str(source), "--out", str(tmp_path / "run")])
    photos = sorted(photographs(tmp_path / "photos", 2).rglob("*.jpg"))
    model = theirs_of(source, task, torch.float32)
    tuned = minift.load(tmp_path / "run", "cpu")
    pixels = next(
        iter(tuned.prepare(tuned.task.read(photos, tuned.layout, labelled=False)).batches([np.arange(4)], torch.device("cpu")))
    )
    with torch.inference_mode():
        theirs = model(pixels.inputs[0]).logits
    p = theirs.softmax(-1) if task == "image-classification" else theirs.sigmoid()
    for one, row in zip(tuned.predict(photos), p.tolist(), strict=True):
        assert list(one["probabilities"].values()) == pytest.approx(row, abs=1e-4)


# ---- runs of minift ----

TRAINED = [name for name, case in CASES.items() if case.task in ("", name) and name in HEADS]


@pytest.mark.parametrize("method", ["full", "lora:rank=2"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_run_of_every_task_goes_out_and_in_again(tmp_path, name, method):
    case, model = CASES[name], CASES[name].models[0]
    base = BASES[model](tmp_path / "base")
    data = case.data(tmp_path)
    flags = {"task": name, "train": data, "model": base, "out": tmp_path / "run", "epochs": 2, "lr": 1e-2, "method": method}
    arguments = [str(part) for flag, value in (flags | dict(case.flags)).items() for part in (f"--{flag.replace('_', '-')}", value)]
    train.main([*arguments, "--precision", "float32"])
    assert convert.main([str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "hf"), "--check"]) == 0
    theirs_of(tmp_path / "hf", name)
    assert convert.main([str(tmp_path / "hf"), "--out", str(tmp_path / "again"), "--check"]) == 0
    assert_equal(tmp_path / "again", tmp_path / "hf", name, model)

    first, again = minift.load(tmp_path / "run", "cpu"), minift.load(tmp_path / "again", "cpu")
    task = first.checkpoint.task | ({"scaled": False} if name == "text-regression" else {})
    assert again.checkpoint.task == task | ({"written": None} if "written" in task else {})
    rows = first.task.read(str(data), first.layout)
    hundreds = name in ("text-regression", "causal-lm", "instruction-tuning")  # what is predicted: targets, perplexities
    for one, other in zip(first.predict_rows(rows), again.predict_rows(rows), strict=True):
        assert_alike(one, other, 2e-3 if hundreds else 2e-5)


def assert_alike(one, other, tolerance: float) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key], tolerance)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_alike(a, b, tolerance)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-6, abs=tolerance)
    else:
        assert one == other


def test_regression_goes_out_in_true_units_and_not_in_scaled_ones(tmp_path):
    """The trap: the head as it was trained gives (target - mean) / deviation."""
    base, data = BASES["bert"](tmp_path / "base"), CASES["text-regression"].data(tmp_path)
    train.main(
        ["--task", "text-regression", "--train", str(data), "--model", str(base), "--out", str(tmp_path / "run"), "--epochs", "1"]
    )
    convert.main([str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "hf")])
    checkpoint = read(tmp_path / "run" / "model")
    mean, deviation = checkpoint.task["mean"], checkpoint.task["deviation"]
    call, _ = outputs(tmp_path / "run" / "model")
    model = theirs_of(tmp_path / "hf", "text-regression")
    given = inputs_of("bert", CONFIG.vocab_size)
    with torch.inference_mode():
        theirs = model(given[0], given[1].long(), given[2]).logits
    close(call(*given) * deviation + mean, theirs, "true units", 1e-3)  # the head is rounded to float32
    assert deviation > 100 and (call(*given) - theirs).abs().min() > 100
    assert model.config.problem_type == "regression" and model.config.num_labels == 1


def test_thresholds_come_back_and_transformers_passes_them_over(tmp_path, capsys):
    base, data = BASES["bert"](tmp_path / "base"), CASES["multi-label-classification"].data(tmp_path)
    flags = {"task": "multi-label-classification", "train": data, "model": base, "out": tmp_path / "run", "epochs": 2, "lr": 1e-2}
    train.main([str(part) for flag, value in flags.items() for part in (f"--{flag}", value)])
    capsys.readouterr()
    convert.main([str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "hf")])
    assert "thresholds" in capsys.readouterr().out
    tuned = read(tmp_path / "run" / "model").task
    assert tuned["thresholds"] != [0.5] * 3 and tuned["tuned_on"]
    model = theirs_of(tmp_path / "hf", "multi-label-classification")
    model.save_pretrained(tmp_path / "kept")  # transformers carries it along
    assert json.loads((tmp_path / "kept" / "config.json").read_text())[OURS]["thresholds"] == tuned["thresholds"]
    # a head that somebody has trained anew on other labels is not held to them
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    for leaf in ("weight", "bias"):
        tensors[f"classifier.{leaf}"] = tensors[f"classifier.{leaf}"][:2].clone()
    save_file(tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    write_json(tmp_path / "hf" / "config.json", config | {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}})
    convert.main([str(tmp_path / "hf"), "--out", str(tmp_path / "other")])
    assert f"{OURS} of config.json left out" in capsys.readouterr().out
    assert read(tmp_path / "other").task["thresholds"] == [0.5, 0.5]


# ---- what is taken how ----


def said_of(tmp_path, capsys, source, *flags) -> str:
    capsys.readouterr()
    convert.main([str(source), "--out", str(tmp_path / f"out{len(list(tmp_path.iterdir()))}"), *flags])
    return capsys.readouterr().out


def test_the_body_alone(tmp_path, capsys):
    source = fine_tuned(tmp_path / "source", "text-classification", "bert")
    assert convert.main([str(source), "--as", "body", "--out", str(tmp_path / "body"), "--check"]) == 0
    out = capsys.readouterr().out
    assert "dropped  classifier.bias, classifier.weight" in out and "run " not in out
    assert read(tmp_path / "body").task is None and read(tmp_path / "body").own_pool == "cls"


def test_a_pretrained_bert_keeps_pooler_and_head(tmp_path, capsys):
    """As google-bert's have them: a run of masked-lm has no pooler, which a classifier may want."""
    torch.manual_seed(0)
    source = huggingface_directory(tmp_path / "source")
    model = randomised(transformers.BertForPreTraining(transformers.BertConfig(**asdict(CONFIG))))
    model.save_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    write_json(source / "config.json", config | {"architectures": ["BertForMaskedLM"]})
    assert convert.main([str(source), "--out", str(tmp_path / "body"), "--check"]) == 0
    out = capsys.readouterr().out
    assert (
        "--as run" in out
        and "masked-lm is kept" in out
        and "dropped  cls.seq_relationship.bias, cls.seq_relationship.weight" in out
    )
    checkpoint = read(tmp_path / "body")
    assert checkpoint.own_pool == "cls" and checkpoint.heads["masked-lm"].keys() == {
        *("dense.weight", "dense.bias", "norm.weight", "norm.bias", "bias")
    }
    assert torch.equal(checkpoint.heads["masked-lm"]["dense.weight"], model.cls.predictions.transform.dense.weight)
    assert convert.main([str(source), "--as", "run", "--out", str(tmp_path / "run"), "--check"]) == 0
    assert "pooler.dense.weight" in capsys.readouterr().out
    assert read(tmp_path / "run").own_pool is None
    # out again with both
    assert convert.main([str(tmp_path / "body"), "--to", "hf", "--out", str(tmp_path / "hf"), "--check"]) == 0
    back = transformers.BertForPreTraining.from_pretrained(tmp_path / "hf", output_loading_info=True)[1]
    assert set(back["missing_keys"]) == {"cls.seq_relationship.weight", "cls.seq_relationship.bias"}
    assert not back["unexpected_keys"]


def test_masked_lm_goes_on_from_the_head_of_a_checkpoint(tmp_path, capsys):
    source = fine_tuned(tmp_path / "source", "masked-lm", "bert")
    convert.main([str(source), "--as", "body", "--out", str(tmp_path / "body")])
    data = CASES["masked-lm"].data(tmp_path)
    capsys.readouterr()
    train.main(
        [
            "--task",
            "masked-lm",
            "--train",
            str(data),
            "--model",
            str(tmp_path / "body"),
            "--out",
            str(tmp_path / "run"),
            "--epochs",
            "1",
        ]
    )
    assert "newly initialised: nothing" in capsys.readouterr().out


@pytest.mark.parametrize("task", [task for task, kind in KINDS if kind == "bert"])
def test_other_tasks_go_on_from_such_a_run(tmp_path, task, capsys):
    source = fine_tuned(tmp_path / "source", task, "bert")
    convert.main([str(source), "--out", str(tmp_path / "base")])
    data = CASES["text-classification"].data(tmp_path)
    train.main(["--train", str(data), "--model", str(tmp_path / "base"), "--out", str(tmp_path / "run"), "--epochs", "1"])
    assert f"its own head, of {task}, is left out" in capsys.readouterr().out
    assert minift.load(tmp_path / "run").predict(TEXTS)


def test_lengths_and_pairs(tmp_path, capsys):
    source = fine_tuned(tmp_path / "source", "text-classification", "bert")
    assert "up to 40 tokens of a text (all that the model can take), a row is one text" in said_of(tmp_path, capsys, source)
    for said, expected in (
        (7, "up to 7 tokens of a text (model_max_length"),
        (10**30, "up to 40 "),
        ("x", "up to 40 "),
        (512, "up to 40 "),
    ):
        settings = json.loads((source / "tokenizer_config.json").read_text())
        write_json(source / "tokenizer_config.json", settings | {"model_max_length": said})
        assert expected in said_of(tmp_path, capsys, source)
    convert.main([str(source), "--pairs", "--out", str(tmp_path / "pairs")])
    model, tokenizer = theirs_of(source, "text-classification", torch.float32), transformers.AutoTokenizer.from_pretrained(source)
    (made,) = minift.load(tmp_path / "pairs", "cpu").predict([TEXTS[0]], [TEXTS[1]])
    with torch.inference_mode():
        p = model(**tokenizer(TEXTS[0], TEXTS[1], return_tensors="pt")).logits.softmax(-1)[0]
    assert list(made["probabilities"].values()) == pytest.approx(p.tolist(), abs=1e-5)


def change(source: Path, **fields) -> Path:
    config = json.loads((source / "config.json").read_text())
    write_json(source / "config.json", {name: value for name, value in (config | fields).items() if value != "DEL"})
    return source


# What config.json says -> what comes of it: a task, or a part of the note that only the body is taken
SAID = {
    "no problem_type": ({"problem_type": "DEL"}, "text-classification"),
    "problem_type null": ({"problem_type": None}, "text-classification"),
    "several": ({"problem_type": "multi_label_classification"}, "multi-label-classification"),
    "regression of three": ({"problem_type": "regression"}, "the head has 3 outputs, and that of text-regression has 1"),
    "another problem": ({"problem_type": "ranking"}, "no task has problem_type 'ranking'"),
    "no labels": ({"id2label": "DEL"}, "text-classification: LABEL_0, LABEL_1, LABEL_2"),
    "labels of another head": ({"id2label": {"0": "a", "1": "b"}}, "does not number the 3 outputs"),
    "labels that are none": ({"id2label": {"0": "a", "1": "", "2": None}}, "labels that are no names"),
    "a list": ({"id2label": ["a", "b", "c"]}, "does not number"),
    "a label twice": ({"id2label": {"0": "crane", "1": "b", "2": "crane"}}, "text-classification: crane (0), b, crane (2)"),
    "numbers": ({"id2label": {"0": 1, "1": 2, "2": 3}}, "text-classification: 1, 2, 3"),
    "a class of its own": ({"architectures": ["BertForMultipleChoice"]}, "no task has the head of BertForMultipleChoice"),
    "tokens": ({"architectures": ["BertForTokenClassification"]}, "expected tags that differ, O among them"),
    "a head that is not there": (
        {"architectures": ["BertForQuestionAnswering"]},
        "qa_outputs.weight" if "question-answering" in TASKS else "no task",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_config_says_of_the_head(tmp_path, case, capsys):
    fields, expected = SAID[case]
    source = change(fine_tuned(tmp_path / "source", "text-classification", "bert"), **fields)
    said = said_of(tmp_path, capsys, source)
    if expected.startswith(("text-", "multi-")):
        assert f"run      {expected}" in said
        return
    assert "note     taken as a body: " in said and expected in said and "run  " not in said and "classifier.weight" in said
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        convert.main([str(source), "--as", "run", "--out", str(tmp_path / "no")])
    assert "config.json" in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "no").exists()


def test_one_output_without_a_problem_is_regression(tmp_path, capsys):
    source = fine_tuned(tmp_path / "source", "text-regression", "bert", problem_type=None)
    assert "run      text-regression" in said_of(tmp_path, capsys, source)


def refused(arguments: list, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        convert.main([str(argument) for argument in arguments])
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value), caught.value


def test_wrong_use_and_broken_heads_are_one_line(tmp_path):
    source, out = fine_tuned(tmp_path / "source", "text-classification", "bert"), ["--out", tmp_path / "out"]
    refused([source, "--as", "body", "--pairs", *out], "--pairs")
    refused([huggingface_directory(tmp_path / "plain"), "--as", "run", *out], "BertModel", "no head")
    refused([tmp_path / "plain", "--pairs", *out], "--pairs")
    refused([fine_tuned(tmp_path / "images", "image-classification", "resnet"), "--pairs", *out], "--pairs")
    tensors = load_file(source / "model.safetensors")
    for change_, parts in {
        "nan": (lambda t: t["classifier.weight"].fill_(torch.nan), ["NaN"]),
        "bias": (lambda t: t.pop("classifier.bias"), ["missing", "classifier.bias"]),
        "width": (lambda t: t.update({"classifier.weight": torch.zeros(3, 5)}), ["classifier.weight is (3, 5)"]),
    }.values():
        changed = {name: tensor.clone() for name, tensor in tensors.items()}
        change_(changed)
        save_file(changed, source / "model.safetensors", metadata={"format": "pt"})
        refused([source, *out], "model.safetensors", *parts)
    run = tmp_path / "run"
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    convert.main([str(source), "--out", str(run)])
    refused([run, "--to", "hf", "--as", "run", *out], "--as")
    refused([run, "--to", "hf", "--pairs", *out], "--pairs")
    assert not (tmp_path / "out").exists()


def test_a_decoder_of_its_own_is_no_head_of_masked_lm(tmp_path, capsys):
    source = fine_tuned(tmp_path / "source", "masked-lm", "bert", tie_word_embeddings=False)
    tensors = load_file(source / "model.safetensors")
    assert not torch.equal(tensors["cls.predictions.decoder.weight"], tensors["bert.embeddings.word_embeddings.weight"])
    refused([source, "--out", tmp_path / "out"], "cls.predictions.decoder.weight", "--as body")
    said = said_of(tmp_path, capsys, source, "--as", "body")
    assert "cls.predictions.decoder.weight" in said and "kept" not in said


def test_a_decoder_that_stands_beside_its_table_is_it(tmp_path):
    """Files of other programs hold both."""
    source = fine_tuned(tmp_path / "source", "masked-lm", "bert")
    tensors = load_file(source / "model.safetensors")
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias").clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    convert.main([str(source), "--out", str(tmp_path / "run")])
    assert torch.equal(read(tmp_path / "run").head["bias"], tensors["cls.predictions.decoder.bias"])
