"""Token classification against transformers' models and tokenizers and against seqeval; beside it the figures of naive versions."""

import functools
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from reference.heads import same_training_step
from tiny import VOCABULARY, converted_directory, tiny_body, tiny_roberta
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor

from minift.data.batching import by_length
from minift.data.conll import Tagged
from minift.data.tokenising import encode_words, frame
from minift.formats.huggingface import to_huggingface
from minift.metrics.entities import to_iob2
from minift.pretrained import Checkpoint, read
from minift.tasks.task import Model
from minift.tasks.token_classification import IGNORED, TokenClassification, Words, log_probabilities

CPU = torch.device("cpu")
LABELS = ["O", "B-X", "I-X", "B-Y", "I-Y"]
WORDS = ["the", "film", "slowly", "good", "zébra", "hotel", "a", "very", "\u200d", "don't", "中文", "fast", "."]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    return read(converted_directory(tmp_path_factory.mktemp("base") / "base"))


def sentences(rows: int = 25, longest: int = 20) -> Tagged:
    """Random words and tags, some of which break the rules of IOB2."""
    random = np.random.default_rng(0)
    words = [[WORDS[i] for i in random.integers(len(WORDS), size=random.integers(1, longest))] for _ in range(rows)]
    return Tagged(Path("rows.conll"), words, [[LABELS[i] for i in random.integers(5, size=len(row))] for row in words])


def prepared(checkpoint: Checkpoint, examples: Tagged, max_length: int = 40, overlap: int = 4) -> tuple[TokenClassification, Words]:
    task = TokenClassification(LABELS, None, max_length, overlap)
    return task, task.prepare(examples, checkpoint)


# ---- loss and gradients ----


def reference(body, kind: str) -> torch.nn.Module:
    config = {"bert": transformers.BertConfig, "roberta": transformers.RobertaConfig}[kind](**asdict(body.config), num_labels=5)
    make = {"bert": transformers.BertForTokenClassification, "roberta": transformers.RobertaForTokenClassification}[kind]
    return make(config).double()


def twins(kind: str, dropout: float) -> tuple[Model, torch.nn.Module]:
    make = {"bert": tiny_body, "roberta": tiny_roberta}[kind]
    body = make(pool=None, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout).double()
    torch.manual_seed(0)
    model = Model(body, TokenClassification(LABELS, None, 40, 4).head(body)).double()
    torch.nn.init.normal_(model.head.bias)
    theirs = reference(body, kind)
    theirs.load_state_dict(in_theirs(model, kind, dict(model.body.state_dict()), model.head.state_dict()), strict=True)
    return model, theirs


def in_theirs(model: Model, kind: str, body: dict[str, Tensor], head: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = to_huggingface({name: t.detach().clone() for name, t in body.items()}, model.body, f"{kind}.")
    return weights | {f"classifier.{name}": t.detach().clone() for name, t in head.items()}


def theirs_on(theirs, batch) -> Tensor:
    tokens, mask, _ = batch.inputs
    return theirs(tokens, None if mask is None else mask.long(), labels=batch.targets[0]).loss


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_loss_and_gradients_are_those_of_transformers(checkpoint, kind, dropout):
    model, theirs = twins(kind, dropout)
    task, data = prepared(checkpoint, sentences())
    if kind == "roberta":
        data.pad = 1
        data.tokens = [np.maximum(ids, 2) for ids in data.tokens]  # 0 and 1 are special to it
    (batch,) = data.batches([np.arange(9)], CPU)
    assert batch.inputs[1] is not None and (batch.targets[0] == IGNORED).any() and len({*batch.counts.tolist()}) > 1
    same_training_step(task, model, theirs, batch, theirs_on, functools.partial(in_theirs, model, kind))


def test_the_mean_of_batches_is_not_the_mean_over_words(checkpoint):
    """Trap: transformers' loss is the mean of a batch, so that accumulated batches of few words weigh as much as those of many."""
    model, theirs = twins("bert", 0.0)
    task, data = prepared(checkpoint, sentences())
    order = by_length(data.lengths, 4)
    (large,) = data.batches([np.concatenate(order)], CPU)
    right = theirs_on(theirs, large)
    batches = list(data.batches(order, CPU))
    ours = sum(task.loss(model(batch)[1], batch).sum() for batch in batches) / sum(batch.counts.sum() for batch in batches)
    torch.testing.assert_close(ours, right, rtol=0, atol=1e-12)
    naive = torch.stack([theirs_on(theirs, batch) for batch in batches]).mean()
    assert abs(naive - right) > 1e-3


# ---- words to tokens ----


def test_words_become_the_tokens_of_transformers(checkpoint, tmp_path):
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY), encoding="utf-8")
    if int(transformers.__version__.partition(".")[0]) >= 5:
        pytest.skip("transformers 5 takes no vocab_file")
    theirs = transformers.BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt"))
    assert_tokens(checkpoint.tokenizer, theirs, [*sentences().words, ["\u200d"], ["New York", "[MASK]", "[SEP]", "x" * 300]])


def roberta_tokenizers(directory: Path) -> tuple[transformers.RobertaTokenizerFast, transformers.RobertaTokenizerFast]:
    """Byte-level BPE, learned from a few words: with a blank before every word, and as a checkpoint has it."""
    bpe = ByteLevelBPETokenizer()
    texts = ["the film was slow and very good", "film slow good very hotel"] * 20
    bpe.train_from_iterator(texts, vocab_size=400, min_frequency=1, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    bpe.save_model(str(directory))
    files = {"vocab_file": str(directory / "vocab.json"), "merges_file": str(directory / "merges.txt")}
    if int(transformers.__version__.partition(".")[0]) >= 5:
        pytest.skip("transformers 5 takes no vocab_file")
    return transformers.RobertaTokenizerFast(**files, add_prefix_space=True), transformers.RobertaTokenizerFast(**files)


def test_roberta_knows_each_word_with_a_blank_before_it(tmp_path):
    """Trap: without the blank all words but the first are taken for the middles of longer ones."""
    theirs, plain = roberta_tokenizers(tmp_path)
    rows = [["the", "film", "was", "good"], ["zébra", "don't", "中文", "film"]]
    assert_tokens(plain.backend_tokenizer, theirs, rows)  # a checkpoint's tokenizer has add_prefix_space=False
    ours = encode_words(plain.backend_tokenizer, rows)[0][0].tolist()
    assert ours == plain(" the film was good", add_special_tokens=False).input_ids
    naive = plain.backend_tokenizer.encode(rows[0], is_pretokenized=True, add_special_tokens=False).ids
    assert naive == [i for word in rows[0] for i in plain(word, add_special_tokens=False).input_ids] != ours


def assert_tokens(tokenizer, theirs, rows: list[list[str]]) -> None:
    before, after = frame(tokenizer)
    tokens, firsts = encode_words(tokenizer, rows)
    for words, ids, first in zip(rows, tokens, firsts, strict=True):
        expected = theirs(words, is_split_into_words=True)
        assert [*before, *ids, *after] == expected.input_ids
        of = expected.word_ids()
        assert [at + len(before) if at >= 0 else None for at in first] == [
            of.index(i) if i in of else None for i in range(len(words))
        ]


def test_windows_are_those_of_transformers_and_lose_no_word(checkpoint, tmp_path):
    """Trap: a length cut loses the words behind it without a word; transformers' windows have each of them once or more often."""
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY), encoding="utf-8")
    if int(transformers.__version__.partition(".")[0]) >= 5:
        pytest.skip("transformers 5 takes no vocab_file")
    theirs = transformers.BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt"))
    examples = sentences(40, 60)
    _, data = prepared(checkpoint, examples, max_length=16, overlap=5)
    options = {"is_split_into_words": True, "truncation": True, "max_length": 16}
    kept = labelled = 0
    for row, words in enumerate(examples.words):
        cut = theirs(words, **options)
        kept += len({*cut.word_ids()} - {None})
        whole = theirs(words, **options, stride=5, return_overflowing_tokens=True)
        units = np.flatnonzero(data.rows == row)
        of = {i: [w for w, ids in enumerate(whole.input_ids) if ids == data.tokens[i].tolist()] for i in units}
        assert all(of.values()) and len(units) <= len(whole.input_ids)
        labelled += sum(len(data.words[i]) for i in units)
        for i in units:
            assert all(whole.word_ids(of[i][0])[at] == word for at, word in zip(data.places[i], data.words[i], strict=True))
    words = sum(map(len, examples.words))
    unseen = sum(word == "\u200d" for row in examples.words for word in row)
    assert labelled == words - unseen and data.describe()["without a token"] == unseen
    assert kept < 0.6 * labelled
    assert sum(data.outline(np.arange(len(data)), None).counts) == labelled
    assert data.describe()["in windows of 16"] == sum(n > 16 for n in data.row_lengths) > 10


# ---- figures ----


def test_figures_are_those_of_seqeval(checkpoint):
    scheme = pytest.importorskip("seqeval.scheme")
    strict = functools.partial(pytest.importorskip("seqeval.metrics.v1").precision_recall_fscore_support, scheme=scheme.IOB2)
    lenient = pytest.importorskip("seqeval.metrics.sequence_labeling").precision_recall_fscore_support
    accuracy = pytest.importorskip("seqeval.metrics").accuracy_score
    examples = sentences(60, 40)
    task, data = prepared(checkpoint, examples, max_length=16, overlap=5)
    meter, logits = task.meter(data), {}
    generator = torch.Generator().manual_seed(0)
    for batch in data.batches(by_length(data.lengths, 7), CPU):
        outputs = 2 * torch.randn(*batch.inputs[0].shape, 5, generator=generator, dtype=torch.float64)
        meter.add(outputs, batch)
        for i, row in enumerate(batch.rows.tolist()):
            for at in np.flatnonzero(batch.targets[1][i] >= 0):
                logits[row, int(batch.targets[1][i, at])] = outputs[i, at]
    gold = [to_iob2(tags, "IOB2")[0] for tags in examples.tags]
    greedy = [
        [LABELS[int(logits[row, i].argmax())] if (row, i) in logits else "O" for i in range(len(tags))]
        for row, tags in enumerate(gold)
    ]
    paths = all_predictions(task, data, logits)
    found = meter.metrics()
    for predicted, name in ((greedy, "_greedy"), (paths, "")):
        for reading, score in (("strict", strict), ("lenient", lenient)):
            precision, recall, f1, _ = score(gold, predicted, average="micro", zero_division=0)
            assert found[f"f1_{reading}{name}"] == pytest.approx(f1, abs=1e-12)
            if f"precision_{reading}{name}" in found:
                assert (found[f"precision_{reading}{name}"], found[f"recall_{reading}{name}"]) == pytest.approx((precision, recall))
    assert found["token_accuracy"] == pytest.approx(accuracy(gold, paths))
    assert found["f1_strict"] == found["f1_lenient"] > 0
    assert found["f1_strict_greedy"] != found["f1_lenient_greedy"], "nothing tells the readings apart"


def all_predictions(task, data, logits) -> list[list[str]]:
    """The tags that `predict` gives, from logits by (row, word)."""
    outputs = {}
    for unit, row in enumerate(data.rows.tolist()):
        full = torch.zeros(data.lengths[unit], len(task.labels), dtype=torch.float64)
        for at, word in zip(data.places[unit], data.words[unit], strict=True):
            full[at] = logits[row, int(word)]
        outputs.setdefault(row, []).append(full)
    return [one["tags"] for one in task.predict(iter(outputs.items()), data)]


def test_log_probabilities_are_those_of_torch():
    logits = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(np.exp(log_probabilities(logits)), logits.softmax(-1).numpy(), atol=1e-14)
