"""convert.py --to peft and --to adapters, and such directories brought in: by the command line, with the libraries themselves."""

import peft
import pytest
import torch
import transformers
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
