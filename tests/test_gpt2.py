"""A GPT-2 from the command line: a small one over bytes without a checkpoint, how it starts, and what it is refused for."""

import json

import pytest
import torch
from contract.tasks import converted_gpt2
from tiny import rows_file

import minift
import train
from minift.errors import UserError
from minift.pretrained import read, untrained

SMALL = "gpt2:n_layer=2,n_embd=16,n_head=2,n_positions=64"


def run(tmp_path, *arguments, model=SMALL, train_file=None, init="random", **flags):
    rows = train_file or rows_file(tmp_path / "rows.csv")
    given = {"train": rows, "model": model, "init": init, "out": tmp_path / "run", "epochs": 1, "precision": "float32"} | flags
    named = (part for flag, value in given.items() if value is not None for part in (f"--{flag.replace('_', '-')}", str(value)))
    train.main([*arguments, *named])
    return tmp_path / "run"


def test_a_small_one_over_bytes_needs_no_checkpoint(tmp_path, capsys):
    directory = run(tmp_path, dropout=0.3, attention_dropout=0.2, epochs=2, lr=1e-2)
    said = " ".join(capsys.readouterr().out.split())
    assert f"{SMALL} without weights, over bytes; newly initialised: everything" in said
    checkpoint = read(directory / "model")
    config = checkpoint.config
    assert (config["n_layer"], config["n_embd"], config["n_positions"], config["vocab_size"]) == (2, 16, 64, 257)
    assert (config["embd_pdrop"], config["resid_pdrop"], config["attn_pdrop"]) == (0.3, 0.3, 0.2)
    assert checkpoint.head.keys() == {"weight"} and checkpoint.task["pool"] == "last"
    model = minift.load(directory, "cpu")
    alone = [next(iter(model.predict([text]))) for text in ("the film was good", "", "bad")]
    together = list(model.predict(["the film was good", "", "bad"]))
    for one, other in zip(alone, together, strict=True):  # whatever they are padded to; an empty text is one end of text
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


def test_sizes_by_name():
    config = untrained("distilgpt2").config
    assert (config["n_layer"], config["n_embd"], config["n_positions"], config["eos_token_id"]) == (6, 768, 1024, 256)
    assert untrained("gpt2-medium:n_layer=3").config["n_embd"] == 1024 and untrained("gpt2-nano") is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"model": "gpt2:layers=4"}, "'layers=4' is no option of gpt2"),
        ({"model": "gpt2:n_embd=20,n_head=3"}, "--model gpt2:n_embd=20,n_head=3: n_embd 20 is no multiple of n_head 3"),
        ({"init": "pretrained"}, "has no weights to start from; add --init random"),
        ({"pool": "cls"}, "--pool 'cls': a Gpt2 has last and mean"),
        ({"solver": "lbfgs", "method": "probe", "epochs": None}, "--solver lbfgs: it finds a weight and a bias"),
        ({"max_length": 65}, "--max-length 65: the model has 64 positions"),
    ],
)
def test_mistakes_are_answered_in_one_line(tmp_path, flags, said):
    with pytest.raises(UserError) as error:
        run(tmp_path, **flags)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("task", ["masked-lm", "question-answering"])
def test_tasks_whose_tokens_see_both_sides_refuse_it(tmp_path, task):
    with pytest.raises(UserError, match="is a causal model: its tokens do not see those behind them"):
        run(tmp_path, "--task", task)


def test_pairs_are_refused_as_nothing_stands_between_them(tmp_path):
    (tmp_path / "pairs.csv").write_text("sentence1,sentence2,label\n" + "a b,c d,x\ne f,g h,y\n" * 10, encoding="utf-8")
    with pytest.raises(UserError, match="the tokenizer of this model puts nothing between them"):
        run(tmp_path, train_file=tmp_path / "pairs.csv")


def test_the_pool_of_a_bert_stays_its_own(tmp_path):
    with pytest.raises(UserError, match="--pool 'last': a Bert has cls and mean"):
        run(tmp_path, model="minilm-l6", init="pretrained", pool="last")


def test_a_regression_whose_mean_no_bias_can_hold_is_not_exported(tmp_path):
    import convert

    base = converted_gpt2(tmp_path / "base")
    (tmp_path / "rows.csv").write_text("text,score\n" + "".join(f"row {i},{100 + i}\n" for i in range(20)), encoding="utf-8")
    flags = {"model": base, "init": "pretrained", "train_file": tmp_path / "rows.csv", "epochs": 0}
    directory = run(tmp_path, "--task", "text-regression", **flags)
    with pytest.raises(UserError, match="the head has no bias, in which transformers could keep the mean of the targets"):
        convert.main([str(directory), "--to", "hf", "--out", str(tmp_path / "hf")])
    directory = run(tmp_path, "--task", "text-regression", "--no-scale-targets", **flags | {"out": tmp_path / "plain"})
    assert convert.main([str(tmp_path / "plain"), "--to", "hf", "--out", str(tmp_path / "hf"), "--check"]) == 0
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"] == ["GPT2ForSequenceClassification"]


def test_the_last_token_is_pooled_whatever_its_id(tmp_path):
    """transformers looks for the id of padding, and a text may end with it; the mask knows better."""
    checkpoint = read(converted_gpt2(tmp_path / "base"))
    body = checkpoint.body("last").eval()
    end = checkpoint.config["pad_token_id"]
    tokens = torch.tensor([[5, 6, 7, end], [5, 6, end, end]])
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    state = body(tokens, mask)
    torch.testing.assert_close(state.pooled, torch.stack([state.hidden[0, 3], state.hidden[1, 2]]), rtol=0, atol=0)
    torch.testing.assert_close(state.pooled[1], body(tokens[1:, :3]).pooled[0], rtol=0, atol=1e-5)
