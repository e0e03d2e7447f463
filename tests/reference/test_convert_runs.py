"""convert.py --to peft and --to adapters, and such directories brought in: by the command line, with the libraries themselves."""

import json

import peft
import pytest
import torch
import transformers
from contract.tasks import sentences_file
from reference.test_heads import fine_tuned
from test_train import run
from tiny import converted_directory, huggingface_directory, tiny_body
from twins import needs_past_key_values

import convert
import minift
import train
from minift.errors import UserError

TEXTS = ["the film was very good", "a bad slow book", "never a good hotel ."]


@pytest.fixture
def base(tmp_path):
    return converted_directory(tmp_path / "base")


def probabilities(directory) -> list[float]:
    return [row["probabilities"]["positive"] for row in minift.load(directory).predict(TEXTS)]


def theirs(model, tokenizer) -> list[float]:
    with torch.inference_mode():
        return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.double().softmax(-1)[:, 1].tolist()


@pytest.mark.parametrize(
    ("method", "to"),
    [
        ("lora:rank=2", "peft"),
        ("dora:rank=2", "peft"),
        ("ia3", "peft"),
        ("prefix:length=3,shift=true", "peft"),
        ("prompt:length=3,pooler=all", "peft"),
        ("houlsby:size=2,norms=false", "adapters"),
        ("pfeiffer:size=2", "adapters"),
    ],
)
def test_out_and_in_again(tmp_path, base, method, to, capsys):
    needs_past_key_values(method)
    directory = run(tmp_path, base, method=method, max_length=20)
    expected = probabilities(directory)
    convert.main([str(directory), "--to", to, "--out", str(tmp_path / "out")])
    convert.main([str(base), "--to", "hf", "--out", str(tmp_path / "hf")])
    said = capsys.readouterr().out
    assert "num_labels=2" in said and "from_pretrained" in said and str(tmp_path / "out") in said

    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf", num_labels=2)
    if to == "peft":
        model = peft.PeftModel.from_pretrained(model, tmp_path / "out")
    else:
        adapters = pytest.importorskip("adapters")
        adapters.init(model)
        model.load_adapter(str(tmp_path / "out"), set_active=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs(model.eval(), tokenizer) == pytest.approx(expected, abs=1e-6)

    convert.main([str(tmp_path / "out"), "--base", str(base), "--out", str(tmp_path / "again")])
    assert probabilities(tmp_path / "again") == pytest.approx(expected, abs=1e-6)
    assert "negative, positive" in capsys.readouterr().out


@pytest.mark.parametrize(("method", "to"), [("ia3", "peft"), ("pfeiffer:size=2", "adapters")])
def test_what_a_run_is_comes_back_and_another_base_is_refused(tmp_path, base, method, to):
    lines = ["text,other,label", *(f"the film was {w},very {w},{w}" for w in ("good", "bad") * 12)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    flags = {"--train": tmp_path / "pairs.csv", "--model": base, "--method": method, "--max-length": 20, "--epochs": 1}
    train.main(
        [*map(str, (part for pair in flags.items() for part in pair)), "--pair-column", "other", "--out", str(tmp_path / "run")]
    )
    convert.main([str(tmp_path / "run"), "--to", to, "--out", str(tmp_path / "out")])
    convert.main([str(tmp_path / "out"), "--out", str(tmp_path / "again")])  # the base by the name that was written
    first, again = (minift.load(tmp_path / place) for place in ("run", "again"))
    assert again.settings == first.settings and again.checkpoint.task == first.checkpoint.task
    assert again.predict(["good"], ["bad"]) == first.predict(["good"], ["bad"])
    other = converted_directory(tmp_path / "other", tiny_body(seed=1))
    refused([tmp_path / "out", "--base", other, "--out", tmp_path / "no"], "sha256", "--base")


def test_a_run_as_base_is_not_called_what_it_came_from(tmp_path, base, capsys):
    first = run(tmp_path, base, "first", method="bitfit")
    for method, to, file in (("ia3", "peft", "adapter_config.json"), ("pfeiffer:size=2", "adapters", "adapter_config.json")):
        second = run(tmp_path, first, f"second-{to}", method=method)
        capsys.readouterr()
        convert.main([str(second), "--to", to, "--out", str(tmp_path / to)])
        assert f"python convert.py {first} --to hf" in capsys.readouterr().out
        assert "base-source" not in (tmp_path / to / file).read_text()
        convert.main([str(tmp_path / to), "--out", str(tmp_path / f"again-{to}")])
        assert probabilities(tmp_path / f"again-{to}") == probabilities(second)


def refused(arguments: list, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        convert.main([str(argument) for argument in arguments])
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value), caught.value


def test_wrong_use_is_one_line(tmp_path, base):
    lora, bitfit = run(tmp_path, base, "lora", method="lora:rank=2"), run(tmp_path, base, "bitfit", method="bitfit")
    out = ["--out", tmp_path / "out"]
    refused([lora, "--to", "adapters", *out], "lora", "houlsby or pfeiffer")
    refused([bitfit, "--to", "peft", *out], "bitfit", "--to hf")
    refused([bitfit, "--to", "adapters", *out], "bitfit", "houlsby or pfeiffer")
    refused([base, "--to", "peft", *out], "plain model")
    refused([base, "--to", "adapters", *out], "houlsby or pfeiffer")
    refused([lora, "--to", "peft", *out, "--dtype", "float16"], "--dtype")
    refused([lora, "--to", "peft", *out, "--base", "x"], "--base")
    refused([huggingface_directory(tmp_path / "hf"), "--base", "x", *out], "--base x")
    assert not (tmp_path / "out").exists()
    convert.main([str(lora), "--to", "peft", "--out", str(tmp_path / "peft")])
    refused([tmp_path / "peft"], "--out", "runs/peft")
    refused([tmp_path / "peft", "--check", *out], "--check")
    other = converted_directory(tmp_path / "other", tiny_body(seed=1))
    refused([tmp_path / "peft", "--base", other, *out], "sha256", "--base")
    refused([tmp_path / "peft", "--base", "nowhere", *out], "nowhere", "--base")


def test_a_directory_of_tags_and_the_file_of_their_names(tmp_path, base, capsys):
    """peft has no place for the names: minift.json has them, and where that is not there --label-names."""
    data = sentences_file(tmp_path / "rows.conll")
    flags = {"task": "token-classification", "train": data, "model": base, "method": "lora:rank=2", "epochs": 1, "max-length": 12}
    train.main([str(part) for flag, value in (flags | {"out": tmp_path / "run"}).items() for part in (f"--{flag}", value)])
    capsys.readouterr()
    convert.main([str(tmp_path / "run"), "--to", "peft", "--out", str(tmp_path / "out")])
    assert "AutoModelForTokenClassification.from_pretrained('BASE', num_labels=5)" in capsys.readouterr().out
    convert.main([str(tmp_path / "out"), "--out", str(tmp_path / "again")])
    assert "run      token-classification: O, B-dislikes, I-dislikes, B-likes, I-likes" in capsys.readouterr().out
    expected = minift.load(tmp_path / "run").predict(TEXTS)
    assert minift.load(tmp_path / "again").predict(TEXTS) == expected

    (tmp_path / "out" / "minift.json").unlink()
    refused([tmp_path / "out", "--base", base, "--out", tmp_path / "no"], "LABEL_0", "--label-names")
    names = tmp_path / "names.txt"
    names.write_text("O\nB-dislikes\nI-dislikes\nB-likes\nI-likes\n")
    convert.main([str(tmp_path / "out"), "--base", str(base), "--label-names", str(names), "--out", str(tmp_path / "named")])
    named = minift.load(tmp_path / "named")
    assert named.task.labels == ["O", "B-dislikes", "I-dislikes", "B-likes", "I-likes"]
    assert [one["tags"] for one in named.predict(TEXTS)] == [one["tags"] for one in expected]
    refused([huggingface_directory(tmp_path / "hf"), "--label-names", names, "--out", tmp_path / "no"], "--label-names")
    refused([tmp_path / "out", "--base", base, "--pairs", "--out", tmp_path / "no"], "--pairs")


def test_a_run_of_transformers_as_base_goes_by_its_name(tmp_path, capsys):
    """What transformers has fine-tuned is known to it, unlike a run of minift's: peft's directory names it."""
    source = fine_tuned(tmp_path / "theirs", "text-classification", "bert")
    convert.main([str(source), "--out", str(tmp_path / "base")])
    run(tmp_path, tmp_path / "base", method="lora:rank=2", max_length=20)
    capsys.readouterr()
    convert.main([str(tmp_path / "run"), "--to", "peft", "--out", str(tmp_path / "out")])
    assert "num_labels=2, ignore_mismatched_sizes=True" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(source)
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(source, num_labels=2, ignore_mismatched_sizes=True)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    assert theirs(model, tokenizer) == pytest.approx(probabilities(tmp_path / "run"), abs=1e-6)
