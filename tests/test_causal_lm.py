"""causal-lm as a user has it: a model from scratch over bytes, what it says of texts, and what cannot be."""

import math

import pytest
from contract.tasks import documents_file, over_bytes
from tiny import converted_directory

import minift
import train
from minift import generate, predict
from minift.errors import UserError

SMALL = ["--model", "gpt2:n_layer=1,n_embd=16,n_head=2,n_positions=40", "--init", "random", "--precision", "float32"]


def start(place, *flags: str) -> None:
    file = documents_file(place / "rows.txt")
    train.main(["--task", "causal-lm", "--train", str(file), "--out", str(place / "run"), "--epochs", "1", *flags])


def test_from_scratch_in_one_stream_and_each_text_by_itself_when_it_is_scored(tmp_path, capsys):
    start(tmp_path, *SMALL, "--max-length", "32", "--lr", "1e-2", "--epochs", "3", "--documents", "file", "--valid", "none")
    out, err = capsys.readouterr()
    assert (
        "one document" in out
        and "a training row, token by token" in out
        and f'python -m minift.generate {tmp_path / "run"} "text"' in out
    )
    assert "--max-length 32 with --init random: the positions from there to 40 never train; give the model n_positions=32" in err
    run = minift.load(tmp_path / "run")
    known, other = run.predict(["the film was good", "QXZ JKV #%&"])
    assert known["tokens"] == 18 and known["perplexity"] == pytest.approx(math.exp(known["loss"])) and known["loss"] < other["loss"]
    predict.main([str(tmp_path / "run"), "the film was good"])
    assert f"perplexity {known['perplexity']:.2f} of 18 tokens" in capsys.readouterr().out
    generate.main([str(tmp_path / "run"), "", "--new-tokens", "4"])
    assert "stopped by the number of tokens after 4" in capsys.readouterr().err


def test_across_documents_the_figures_name_tokens_words_bytes_and_the_length_of_blocks(tmp_path, capsys):
    start(tmp_path, "--model", str(over_bytes(tmp_path / "base")), "--max-length", "40", "--precision", "float32")
    out = capsys.readouterr().out
    said = next(line for line in out.splitlines() if line.startswith("perplexity over"))
    assert " tokens, ends of text counted, " in said and " words, " in said
    assert "bytes; blocks of at most 40 tokens across documents" in said
    assert "validation rows with the largest loss" not in out, "a block across documents is no row"


def test_what_cannot_be_is_said_in_one_line(tmp_path):
    bert = str(converted_directory(tmp_path / "bert"))
    wrong = {
        ("--model", bert): "whose tokens see what follows them; expected a decoder",
        (*SMALL, "--method", "probe"): "--method probe trains the head alone, and here the head is the word vectors",
        (*SMALL, "--max-length", "41"): "--max-length 41: the model has 40 positions",
        (*SMALL, "--label-part", ":"): "--label-part ':': no label in the file contains it",
        (*SMALL, "--documents", "file"): "1 documents are too few to hold 10 % back for validation; give --valid or --valid none",
    }
    for flags, said in wrong.items():
        with pytest.raises(UserError) as error:
            start(tmp_path, *flags)
        assert said in str(error.value)
    with pytest.raises(UserError, match="a bert writes no text; expected a run of causal-lm or instruction-tuning, or a decoder"):
        generate.main([bert, "the film"])
