"""minift.tasks.masked_lm against transformers' BertForMaskedLM and RobertaForMaskedLM: loss, logits and every gradient.

HEADS says what transformers calls the tensors of the head.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny import CONFIG, TEXTS, converted_directory, tiny_body, tiny_roberta
from torch import Tensor, nn
from twins import close

from minift.adapting import adapt
from minift.data.batching import in_order
from minift.data.documents import Documents
from minift.data.masking import Blocks
from minift.formats.huggingface import to_huggingface
from minift.methods.surgery import delta, merge
from minift.optim.groups import make_groups
from minift.pretrained import Checkpoint, read, write
from minift.tasks.masked_lm import MaskedLM, word_vectors
from minift.tasks.task import Model

CPU = torch.device("cpu")
HEADS = {
    "bert": {
        "dense.weight": "cls.predictions.transform.dense.weight",
        "dense.bias": "cls.predictions.transform.dense.bias",
        "norm.weight": "cls.predictions.transform.LayerNorm.weight",
        "norm.bias": "cls.predictions.transform.LayerNorm.bias",
        "bias": "cls.predictions.bias",
    },
    "roberta": {
        "dense.weight": "lm_head.dense.weight",
        "dense.bias": "lm_head.dense.bias",
        "norm.weight": "lm_head.layer_norm.weight",
        "norm.bias": "lm_head.layer_norm.bias",
        "bias": "lm_head.bias",
    },
}
TIED = {"bert": "cls.predictions.decoder", "roberta": "lm_head.decoder"}
THEIRS = {
    "bert": (transformers.BertConfig, transformers.BertForMaskedLM, tiny_body),
    "roberta": (transformers.RobertaConfig, transformers.RobertaForMaskedLM, tiny_roberta),
}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TASK = MaskedLM(None, 16, "within", "exact", 0.3)


def model_of(kind: str, method: str = "full", **changes) -> Model:
    """A tiny body and a head, every parameter random."""
    body = THEIRS[kind][2](pool=None, **STILL | changes).double()
    torch.manual_seed(0)
    adapt(body, method)
    model = Model(body, TASK.head(body).double())
    with torch.no_grad():
        for p in model.head.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def twin(model: Model, kind: str) -> nn.Module:
    config, cls, _ = THEIRS[kind]
    theirs = cls(config(**asdict(model.body.config), tie_word_embeddings=True)).double()
    weights = to_huggingface({n: t.detach().clone() for n, t in model.body.state_dict().items()}, model.body, f"{kind}.")
    weights |= {HEADS[kind][name]: tensor.clone() for name, tensor in model.head.state_dict().items()}
    weights |= {
        f"{TIED[kind]}.weight": weights[f"{kind}.embeddings.word_embeddings.weight"],
        f"{TIED[kind]}.bias": weights[HEADS[kind]["bias"]],
    }
    theirs.load_state_dict(weights, strict=True)
    theirs.tie_weights()
    return theirs


def blocks(tmp_path: Path, kind: str = "bert", rows: list[str] = TEXTS, task: MaskedLM = TASK, options=None) -> Blocks:
    checkpoint = read(converted_directory(tmp_path / "base"))
    checkpoint.config["pad_token_id"] = 0 if kind == "bert" else 1
    return task.prepare(Documents(Path("rows"), rows, list(range(len(rows)))), checkpoint, options)


def labels_of(batch) -> Tensor:
    """(B, S) as transformers takes them: -100 where nothing is to be predicted."""
    positions, labels = batch.targets
    full = torch.full_like(batch.inputs[0], -100)
    for row in range(len(full)):
        real = labels[row] >= 0
        full[row, positions[row, real]] = labels[row, real]
    return full


@pytest.mark.parametrize("masking", ["exact", "coin", "whole-words"])
@pytest.mark.parametrize("kind", THEIRS)
def test_loss_and_gradients_are_those_of_transformers(tmp_path, kind, masking):
    task = MaskedLM(None, 16, "within", masking, 0.3)
    model, data = model_of(kind), blocks(tmp_path, kind, task=task)
    theirs = twin(model, kind).eval()
    (batch,) = data.batches([np.arange(len(data))], CPU, None)
    assert batch.inputs[1] is not None and len(set(batch.counts.tolist())) > 1, "padding and unequal counts"
    _, logits = model(batch)
    losses = task.loss(logits, batch)
    (losses.sum() / batch.counts.sum()).backward()
    expected = theirs(batch.inputs[0], batch.inputs[1].long(), labels=labels_of(batch))
    expected.loss.backward()
    close(losses.sum() / batch.counts.sum(), expected.loss, "loss")
    positions, labels = batch.targets
    for row in range(len(labels)):
        real = labels[row] >= 0
        close(logits[row, real], expected.logits[row, positions[row, real]], "logits")
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    ours = to_huggingface({name: p.grad for name, p in model.body.named_parameters()}, model.body, f"{kind}.")
    ours |= {HEADS[kind][name]: p.grad for name, p in model.head.named_parameters()}
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        close(ours[name], gradient, name)


def test_hidden_act_is_that_of_the_reference(tmp_path):
    """BERT's head follows hidden_act, RoBERTa's is gelu whatever it says."""
    for kind in THEIRS:
        model, data = model_of(kind, hidden_act="relu"), blocks(tmp_path / kind, kind)
        (batch,) = data.batches([np.arange(len(data))], CPU)
        expected = twin(model, kind).eval()(batch.inputs[0], batch.inputs[1].long(), labels=labels_of(batch)).loss
        close(TASK.loss(model(batch)[1], batch).sum() / batch.counts.sum(), expected, kind)


def test_accumulation_is_the_large_batch_and_the_mean_of_means_is_not(tmp_path):
    """The trap: with unequal numbers of masked tokens the mean of the batches' means, as in transformers, is another gradient."""
    data, gradients = blocks(tmp_path), {}
    for how, order in (("one", [np.arange(6)]), ("sums", in_order(np.arange(6), 2)), ("means", in_order(np.arange(6), 2))):
        model = model_of("bert")
        batches = list(data.batches(order, CPU))
        count = sum(batch.counts.sum() for batch in batches)
        for batch in batches:
            loss = TASK.loss(model(batch)[1], batch).sum()
            (loss / (batch.counts.sum() * len(batches) if how == "means" else count)).backward()
        gradients[how] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert len({float(batch.counts.sum()) for batch in batches}) > 1
    close(gradients["sums"], gradients["one"], "sums", 1e-12)
    assert (gradients["means"] - gradients["one"]).abs().max() > 1e-3


def test_only_masked_positions_go_through_the_head(tmp_path):
    model, data = model_of("bert"), blocks(tmp_path)
    seen = []
    model.head.dense.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    (batch,) = data.batches([np.arange(len(data))], CPU)
    model(batch)
    assert seen == [(len(data), int(batch.counts.max()), CONFIG.hidden_size)]
    assert batch.counts.max() < batch.inputs[0].shape[1] / 2


@pytest.mark.parametrize("method", ["full", "probe", "bitfit", "partial:stages=1", "lora:rank=2", "prompt:length=3", "ia3"])
def test_the_table_is_registered_once_and_trains_where_the_embeddings_do(tmp_path, method):
    model, data = model_of("bert", method), blocks(tmp_path)
    assert not any("word" in name or "embedding" in name for name in model.head.state_dict())
    groups = make_groups(model, 1e-3, 0.01)
    names = [name for group in groups for name in group.names]
    assert len(names) == len(set(names))
    table = word_vectors(model.body)
    trains = any(group.stage == "embeddings" and "embeddings.word.weight" in group.names for group in groups)
    assert table.requires_grad == trains == (method == "full")
    (batch,) = data.batches([np.arange(len(data))], CPU)
    model.train()
    (TASK.loss(model(batch)[1], batch).sum() / batch.counts.sum()).backward()
    assert (table.grad is not None) == trains
    if trains:  # through the head every row gets a gradient, through the lookup those of the text alone
        assert (table.grad.abs().sum(1) > 0).all()


def test_the_head_sees_what_is_added_to_the_table(tmp_path):
    """Of lora:sites=word the decoder is W + s (B A)^T, so that the merged model gives the same."""
    model, data = model_of("bert", "lora:rank=2,sites=word"), blocks(tmp_path)
    (batch,) = data.batches([np.arange(len(data))], CPU)
    before = model(batch)[1]
    for tensor in delta(model.body).values():
        tensor.data.add_(torch.randn_like(tensor) * 0.3)
    wrapped = model(batch)[1]
    assert (wrapped - before).abs().max() > 1e-3
    word = model.body.embeddings.word
    close(word_vectors(model.body), word.base.weight + word.scale * (word.B @ word.A).T, "table")
    TASK.loss(wrapped, batch).sum().backward()
    assert (word.A.grad.abs().sum(0) > 0).all(), "not every token of the vocabulary gets a gradient"
    merge(model.body)
    close(model(batch)[1], wrapped, "merged")


def test_a_prompt_stands_before_the_words_and_moves_no_position(tmp_path):
    model, data = model_of("bert", "prompt:length=3"), blocks(tmp_path)
    (batch,) = data.batches([np.arange(len(data))], CPU)
    assert model.body.embeddings.base.word.base.weight is word_vectors(model.body)
    state, logits = model(batch)
    assert state.hidden.shape[1] == batch.inputs[0].shape[1] and logits.isfinite().all()


def test_a_head_of_pretraining_is_taken_over_and_stored(tmp_path):
    base = read(converted_directory(tmp_path / "base"))
    model = model_of("bert")
    head = {name: tensor.float() for name, tensor in model.head.state_dict().items()}
    base.heads = {"masked-lm": head}
    write(tmp_path / "with-head", base)
    again = read(tmp_path / "with-head")
    assert again.tensors.keys() == base.tensors.keys()
    assert TASK.pretrained_head(again).keys() == head.keys()
    assert all(torch.equal(again.heads["masked-lm"][name], tensor) for name, tensor in head.items())
    assert TASK.pretrained_head(Checkpoint("bert", {}, {}, None, "")) is None
