"""Conversion in and out against transformers: what one writes the other loads, bit for bit."""

import json
from dataclasses import asdict, replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import CONFIG, TEXTS, huggingface_directory, rows_file, tiny_body, write_json

import convert
import train
from minift.errors import UserError
from minift.finetuned import load
from minift.formats.huggingface import read
from minift.pretrained import read as read_converted


def reference(heads: type, **changes) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return heads(transformers.BertConfig(**asdict(replace(CONFIG, **changes)))).eval()


def add_tokenizer(directory):
    other = huggingface_directory(directory.with_name(directory.name + "-tokenizer"))
    for name in ("vocab.txt", "tokenizer_config.json"):
        (directory / name).write_bytes((other / name).read_bytes())
    return directory


def outputs(model: transformers.BertModel, body, tokens, mask, types):
    with torch.inference_mode():
        state, expected = body(tokens, mask.bool(), types), model(tokens, mask, types)
    return (state.pooled, state.hidden[mask.bool()]), (expected.pooler_output, expected.last_hidden_state[mask.bool()])


def random_inputs():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(CONFIG.vocab_size, (3, 9), generator=generator)
    return tokens, (torch.arange(9) < torch.tensor([9, 5, 2])[:, None]).long(), (torch.arange(9) >= 4).long().expand(3, 9)


@pytest.mark.parametrize("form", ["safetensors", "sharded", "bin", "sharded bin"])
@pytest.mark.parametrize(
    "heads",
    [
        transformers.BertModel,
        transformers.BertForMaskedLM,
        transformers.BertForPreTraining,
        transformers.BertForSequenceClassification,
    ],
)
def test_every_form_that_transformers_saves(tmp_path, form, heads):
    model = reference(heads)
    directory = tmp_path / "checkpoint"
    model.save_pretrained(directory, max_shard_size="8KB" if "sharded" in form else "1GB", safe_serialization="bin" not in form)
    assert any("index" in path.name for path in directory.iterdir()) == ("sharded" in form)
    checkpoint, report = read(add_tokenizer(directory), "tiny", None)
    assert bool(report.dropped) == (heads is not transformers.BertModel)
    assert all(name.startswith(("cls.", "classifier.")) for name in report.dropped)
    assert bool(checkpoint.own_pool) == (model.base_model.pooler is not None)
    body = checkpoint.body(checkpoint.own_pool).eval()
    tokens, mask, types = random_inputs()
    with torch.inference_mode():
        ours = body(tokens, mask.bool(), types).hidden
        theirs = model.base_model(tokens, mask, types).last_hidden_state
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], rtol=0, atol=1e-6)


def test_old_names_stale_buffer_and_dropped_heads(tmp_path):
    plain = huggingface_directory(tmp_path / "plain")
    old = huggingface_directory(tmp_path / "old")
    tensors = {f"bert.{name}": t for name, t in load_file(plain / "model.safetensors").items()}
    tensors = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in tensors.items()
    }
    tensors |= {"bert.embeddings.position_ids": torch.arange(40)[None], "cls.predictions.bias": torch.zeros(3)}
    (old / "model.safetensors").unlink()
    torch.save(tensors, old / "pytorch_model.bin")
    expected, _ = read(plain, "plain", None)
    checkpoint, report = read(old, "old", None)
    assert report.dropped == ["cls.predictions.bias"] and report.said == ["14 old LayerNorm names (gamma, beta)"]
    assert checkpoint.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in expected.tensors.items())
    theirs = transformers.BertModel.from_pretrained(old)
    assert all(torch.equal(t, checkpoint.body().state_dict()[n]) for n, t in expected.body().state_dict().items())
    assert torch.equal(theirs.encoder.layer[1].output.LayerNorm.bias, checkpoint.tensors["layers.1.feed_forward_norm.bias"])


def test_round_trip_is_bit_exact(tmp_path):
    source = huggingface_directory(tmp_path / "source")
    assert convert.main([str(source), "--out", str(tmp_path / "ours"), "--check"]) == 0
    assert convert.main([str(tmp_path / "ours"), "--to", "hf", "--out", str(tmp_path / "back"), "--check"]) == 0
    first, second = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert convert.main([str(tmp_path / "back"), "--out", str(tmp_path / "again")]) is None
    first, second = read_converted(tmp_path / "ours"), read_converted(tmp_path / "again")
    assert first.config == second.config and all(torch.equal(t, second.tensors[n]) for n, t in first.tensors.items())
    assert first.tokenizer.to_str() == second.tokenizer.to_str()

    model = transformers.AutoModel.from_pretrained(tmp_path / "back").eval()
    ours, theirs = outputs(model, first.body().eval(), *random_inputs())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_is_rounded_once_and_checked(tmp_path, dtype, capsys):
    source = huggingface_directory(tmp_path / "source")
    assert convert.main([str(source), "--out", str(tmp_path / "ours"), "--dtype", dtype, "--check"]) == 0
    wanted = getattr(torch, dtype)
    original = read(source, "", None)[0].tensors
    assert all(torch.equal(t, original[n].to(wanted)) for n, t in read_converted(tmp_path / "ours").tensors.items())
    assert "pooler" in capsys.readouterr().out


def test_dtype_on_the_way_out_is_checked_too(tmp_path):
    convert.main([str(huggingface_directory(tmp_path / "source")), "--out", str(tmp_path / "ours")])
    assert convert.main([str(tmp_path / "ours"), "--to", "hf", "--out", str(tmp_path / "hf"), "--dtype", "float16", "--check"]) == 0


def test_check_fails_past_the_tolerance(tmp_path, capsys):
    """The weights of one layer differ by 1e-6: --check names that layer, and exits with 1."""
    source = huggingface_directory(tmp_path / "source")
    convert.main([str(source), "--out", str(tmp_path / "ours")])
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    tensors["layers.1.attention.value.bias"] += 1e-6
    save_file(tensors, tmp_path / "ours" / "model.safetensors")
    capsys.readouterr()
    assert convert.check(read_converted(tmp_path / "ours"), source, None) == 1
    lines = capsys.readouterr().out.splitlines()
    assert ["above" in line for line in lines[-5:]] == [False, False, True, True, True], lines


@pytest.mark.parametrize("labels", [("negative", "positive"), ("0", "1")])
def test_a_run_loads_as_a_sequence_classifier(tmp_path, labels):
    base = tmp_path / "base"
    convert.main([str(huggingface_directory(tmp_path / "source")), "--out", str(base)])
    data = rows_file(tmp_path / "rows.csv")
    data.write_text(data.read_text().replace("positive", labels[1]).replace("negative", labels[0]))
    flags = ["--epochs", "2", "--precision", "float32", "--out", str(tmp_path / "run")]
    train.main(["--train", str(data), "--model", str(base), *flags])
    assert convert.main([str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "hf"), "--check"]) == 0

    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert model.config.id2label == dict(enumerate(labels))
    ours = load(tmp_path / "run").predict(TEXTS)
    with torch.inference_mode():
        p = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.softmax(-1)
    assert [model.config.id2label[i] for i in p.argmax(-1).tolist()] == [o["label"] for o in ours]
    torch.testing.assert_close(p, torch.tensor([[o["probabilities"][label] for label in labels] for o in ours]), rtol=0, atol=1e-6)


def test_a_head_on_the_mean_is_refused(tmp_path):
    base = tmp_path / "base"
    convert.main([str(huggingface_directory(tmp_path / "source")), "--out", str(base)])
    run = tmp_path / "run"
    train.main(
        [
            "--train",
            str(rows_file(tmp_path / "rows.csv")),
            "--model",
            str(base),
            "--pool",
            "mean",
            "--epochs",
            "1",
            "--out",
            str(run),
        ]
    )
    with pytest.raises(UserError, match="--pool cls"):
        convert.main([str(run), "--to", "hf", "--out", str(tmp_path / "hf")])
    assert not (tmp_path / "hf").exists()


def test_pooling_is_recorded_and_written_back(tmp_path):
    source = huggingface_directory(tmp_path / "source")
    (source / "1_Pooling").mkdir()
    write_json(
        source / "1_Pooling" / "config.json",
        {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False},
    )
    convert.main([str(source), "--out", str(tmp_path / "ours")])
    assert read_converted(tmp_path / "ours").pool == "mean"
    convert.main([str(tmp_path / "ours"), "--to", "hf", "--out", str(tmp_path / "back")])
    assert json.loads((tmp_path / "back" / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"] is True


def test_a_body_without_pooler(tmp_path):
    source = huggingface_directory(tmp_path / "source", tiny_body(pool=None))
    assert convert.main([str(source), "--out", str(tmp_path / "ours"), "--check"]) == 0
    checkpoint = read_converted(tmp_path / "ours")
    assert checkpoint.own_pool is None
    assert checkpoint.body("cls").pooler.dense.weight.std() > 0
