"""minift.prompting against transformers' logits on random twins, and calibration worked by hand."""

import numpy as np
import pytest
import torch
from reference.test_causal_lm import twin as twin_of_decoder
from reference.test_masked_lm import model_of as cloze_model
from reference.test_masked_lm import twin as twin_of_cloze
from tiny import byte_checkpoint, converted_directory, rows_file, tiny_gpt2

from minift import prompting
from minift.errors import UserError
from minift.pretrained import read, write
from minift.prompts import Cloze, Decoder, Prompt, calibrated, choose, probabilities
from minift.tasks.causal_lm import TiedHead
from minift.tasks.task import Model

WORDS = {"bad": "bad", "good": "very good", "neither": "g"}
SHOWN = [("the film was slow", "bad"), ("a fast app", "good")]
TEXTS = ["the food was good", "", "never again"]


def decoder() -> Decoder:
    body = tiny_gpt2(pool=None, vocab_size=257, n_positions=120, eos_token_id=256).double().eval()
    return Decoder(Model(body, TiedHead(body)), byte_checkpoint().tokenizer)


@pytest.mark.parametrize("shown", [[], SHOWN], ids=["0 shots", "2 shots"])
def test_a_decoder_scores_every_token_of_a_word_as_transformers_does(shown):
    scorer, prompt = decoder(), Prompt("Text: {text}\nLabel: {label}\n\n", WORDS, shown)
    reference, before = twin_of_decoder(scorer.model.body), {n: t.clone() for n, t in scorer.model.state_dict().items()}
    assert prompt.before() == "".join(f"Text: {text}\nLabel: {WORDS[label]}\n\n" for text, label in shown)
    found, cut = probabilities(scorer, prompt, TEXTS, 2)
    expected = np.empty((3, 3))
    for row, text in enumerate(TEXTS):
        for c, word in enumerate(WORDS.values()):
            whole = torch.tensor([[*f"{prompt.before()}Text: {text}\nLabel: {word}".encode()]])
            with torch.no_grad():
                log_p = reference(whole).logits.log_softmax(-1)[0, :-1].gather(1, whole[0, 1:, None])
            expected[row, c] = log_p[-len(word) - 1 :].sum()  # the blank is a part of the word
    p = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    np.testing.assert_allclose(found, p, rtol=1e-10)
    assert cut == 0 and all(torch.equal(tensor, before[name]) for name, tensor in scorer.model.state_dict().items()), (
        "nothing moved"
    )


@pytest.mark.parametrize("template", ["{text} It was {label}.", "{label}: {text}"])
def test_a_cloze_scores_the_mask_of_the_label_as_transformers_does(tmp_path, template):
    model = cloze_model("bert")
    tokenizer, words = read(converted_directory(tmp_path / "base")).tokenizer, {"a": "good", "b": "bad"}
    scorer, prompt = Cloze(model.eval(), tokenizer), Prompt(template + " ", words, [("slow [MASK] food", "b")])
    texts = ["the film", "a [MASK] app ."]
    found, _ = probabilities(scorer, prompt, texts, 2)
    reference = twin_of_cloze(model, "bert").eval()
    for row, text in enumerate(texts):
        asked = template.format(text="slow [MASK] food", label="bad") + " " + template.format(text=text, label="LABEL") + " "
        ids = torch.tensor([tokenizer.encode(asked.replace("LABEL", "[MASK]")).ids])
        masks = (ids[0] == tokenizer.token_to_id("[MASK]")).nonzero().flatten().tolist()
        at = masks[1] if template.startswith("{label}") else masks[-1]
        with torch.no_grad():
            logits = reference(ids).logits[0, at, [tokenizer.token_to_id("good"), tokenizer.token_to_id("bad")]]
        np.testing.assert_allclose(found[row], logits.softmax(-1).numpy(), rtol=1e-10)


def test_calibration_by_hand():
    """Trap: a model that says `good` to everything at 0.9 is right to be believed only where it says more than that."""
    p, prior = np.array([[0.8, 0.2], [0.95, 0.05], [0.9, 0.1]]), np.array([0.9, 0.1])
    q = calibrated(p, prior)
    np.testing.assert_allclose(q[:, 0], [0.8 / 0.9 / (0.8 / 0.9 + 2), 0.95 / 0.9 / (0.95 / 0.9 + 0.5), 0.5], rtol=1e-12)
    assert p.argmax(1).tolist() == [0, 0, 0] and q[:2].argmax(1).tolist() == [1, 0]


def test_rows_are_shown_of_each_class_in_turn_and_by_the_seed():
    texts, labels = [f"t{i}" for i in range(20)], ["a"] * 15 + ["b"] * 5
    four = choose(texts, labels, 4, 0)
    assert sorted(label for _, label in four) == ["a", "a", "b", "b"] and len({text for text, _ in four}) == 4
    assert four == choose(texts, labels, 4, 0) != choose(texts, labels, 4, 1)
    assert [label for _, label in choose(texts, labels, 14, 0)].count("b") == 5 and choose(texts, labels, 0, 0) == []
    with pytest.raises(UserError, match="--shots 21: there are 20 training rows"):
        choose(texts, labels, 21, 0)


def test_texts_are_cut_where_the_window_is_full_and_counted():
    scorer = decoder()
    _, cut = probabilities(scorer, Prompt("{text}: {label}\n", WORDS, []), ["x" * 300, "short"], 2)
    assert cut == 1
    with pytest.raises(UserError, match="3 shots take the 120 tokens of the model's window; give fewer"):
        probabilities(scorer, Prompt("{text}: {label}\n", WORDS, [("x" * 40, "bad")] * 3), ["a text"], 1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    write(place / "decoder", byte_checkpoint(tiny_gpt2(pool=None, vocab_size=257, n_positions=400, eos_token_id=256)))
    bert, head = read(converted_directory(place / "plain")), cloze_model("bert").head.state_dict()
    bert.heads = {"masked-lm": {name: tensor.float() for name, tensor in head.items()}}
    write(place / "bert", bert)
    rows_file(place / "rows.csv", 16)
    return place


def test_the_command(models, capsys):
    rows, words = str(models / "rows.csv"), "positive=good,negative=bad"
    for name, more in (("decoder", ["--shots", "0,2"]), ("bert", ["--shots", "0,1", "--words", words, "--test-rows", "8"])):
        prompting.main(["--model", str(models / name), "--train", rows, "--test", rows, *more])
        out, err = capsys.readouterr()
        assert out.startswith(f"{rows}: {16 if name == 'decoder' else 8} rows; no weight of {models / name} has moved")
        lines = [line.split() for line in out.splitlines()[3:]]
        assert [line[:2] for line in lines] == [[shot, how] for shot in more[1].split(",") for how in ("plain", "calibrated")]
        assert all(0 <= float(line[2]) <= 1 for line in lines) and err.count("without a text the labels have negative 0.") == 2


WRONG = {
    ("bert",): "the label word 'negative' has 8 tokens, and a cloze has one mask; give another one, as --words negative=WORD",
    ("plain",): "has no head of masked-lm, by which a word could be likely",
    ("decoder", "--words", "good=x"): "--words good=x: expected LABEL=WORD, of the labels negative, positive",
    ("decoder", "--words", "negative=x,positive=x"): "two labels have the same word",
    ("decoder", "--template", "{text}"): "expected one {text}, one {label}, and no other braces",
    ("decoder", "--template", "{label}: {text}"): "a decoder reads the text before the label",
    ("decoder", "--shots", "four"): "--shots four: expected numbers of rows, as 0,4,16",
    ("decoder", "--shots", "9" * 5000): "expected numbers of rows, as 0,4,16",
    ("decoder", "--shots", "0", "--seed", "1"): "--seed 1: no rows are shown",
    ("decoder", "--test-rows", "-3"): "--test-rows -3: expected a whole number at least 2",
    ("decoder", "--label-part", ":"): "--label-part ':': no label in the file contains it",
    ("decoder", "--words", "negative=\udcff"): "--words: a byte that is not UTF-8 (0xff)",
    ("decoder", "--template", "{text}\udcff{label}"): "--template: a byte that is not UTF-8 (0xff)",
    ("decoder", "--words", ""): "--words : expected LABEL=WORD",
    ("decoder", "--words", "negative=x,negative=y"): "the label negative stands there twice",
}


@pytest.mark.parametrize("flags", WRONG, ids=lambda flags: " ".join(flags)[:60])
def test_what_cannot_be_asked_is_said_in_one_line(models, flags):
    rows = str(models / "rows.csv")
    with pytest.raises(UserError) as error:
        prompting.main(["--model", str(models / flags[0]), "--train", rows, "--test", rows, *flags[1:]])
    assert WRONG[flags] in str(error.value)
