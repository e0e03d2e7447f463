"""minift.tasks.causal_lm and instruction_tuning against transformers' GPT2LMHeadModel: loss and every gradient."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny import byte_checkpoint, tiny_gpt2
from torch import Tensor, nn
from twins import close

from minift.adapting import adapt
from minift.data.batching import Batch, in_order
from minift.data.causal import Sequences
from minift.data.documents import Documents
from minift.data.instructions import Instructions, conversation
from minift.data.masking import NO_LABEL
from minift.formats.huggingface import names, to_huggingface, turned
from minift.methods.surgery import merge
from minift.optim.precision import Float32
from minift.tasks.causal_lm import CausalLM
from minift.tasks.instruction_tuning import InstructionTuning
from minift.tasks.task import Model
from minift.training import evaluate

CPU = torch.device("cpu")
TEXTS = ["to be, or not to be", "é中", "", "that is the question: whether 'tis nobler"]
SAID = [
    [("user", "Say a."), ("assistant", "a")],
    [("user", "Say it twice."), ("assistant", "bb"), ("user", "Again."), ("assistant", "bbbb")],
    [("system", "Be short."), ("user", "?"), ("assistant", "")],
]


def model_of(method: str = "full", **changes) -> Model:
    body = tiny_gpt2(pool=None, **{"vocab_size": 257, "n_positions": 120, "eos_token_id": 256} | changes).double()
    torch.manual_seed(0)
    adapt(body, method)
    model = Model(body, CausalLM(None, 40, "across").head(body)).eval()
    with torch.no_grad():
        for parameter in body.parameters():
            if parameter.requires_grad and method != "full":
                parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) * 0.3)
    return model


def twin(body: nn.Module) -> nn.Module:
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**vars(body.config))).double().eval()
    weights = {name: tensor.detach().clone() for name, tensor in body.state_dict().items()}
    reference.transformer.load_state_dict(to_huggingface(weights, body, ""), strict=True)
    return reference


def documents(blocks: str = "across") -> Sequences:
    task = CausalLM(None, 16, blocks)
    return task.prepare(Documents("texts", TEXTS, [*range(len(TEXTS))]), byte_checkpoint())


def instructions(options=None) -> Sequences:
    task = InstructionTuning(None, 100, "messages")
    return task.prepare(Instructions("rows", [conversation(one) for one in SAID], "messages"), byte_checkpoint(), options)


def as_theirs(data: Sequences, units: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids, attention_mask and labels before the shift, as a collator of transformers hands them over."""
    rows = []
    for i in units:
        ids = np.append(data.tokens[i], data.tokens[i][-1:])
        last = data.targets[i][-1]
        ids[-1] = last if last != NO_LABEL else 0
        rows.append((ids, np.append([NO_LABEL], data.targets[i])))
    S = max(len(ids) for ids, _ in rows)
    filled = [
        [np.pad(x, (0, S - len(x)), constant_values=f) for x, f in ((i, 256), (np.ones_like(i), 0), (t, NO_LABEL))] for i, t in rows
    ]
    return tuple(torch.from_numpy(np.stack(part)) for part in zip(*filled, strict=True))


def batch_of(data: Sequences, units: np.ndarray) -> Batch:
    return next(iter(data.batches([units], CPU)))


@pytest.mark.parametrize("make", [documents, lambda: documents("within"), instructions])
def test_loss_and_every_gradient_are_those_of_transformers(make):
    data, model = make(), model_of()
    body, reference = model.body, twin(model.body)
    for units in in_order(np.arange(len(data)), 3):
        batch, (ids, mask, labels) = batch_of(data, units), as_theirs(data, units)
        ours = CausalLM.loss(None, model(batch)[1], batch).sum() / batch.counts.sum()
        found = reference(ids, attention_mask=mask, labels=labels)
        torch.testing.assert_close(found.loss.float(), ours.float(), rtol=1e-6, atol=0)  # its loss rounds the logits to float32
        theirs = F.cross_entropy(found.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=NO_LABEL)
        close(ours, theirs, "loss")
        for found in (ours, theirs):
            found.backward()
    gradients = dict(reference.transformer.named_parameters())
    for name, other in names(body).items():
        close(body.get_parameter(name).grad, turned(other, gradients[other].grad, body), name)


def test_what_is_counted_is_counted_after_the_shift():
    """Trap: the labels of a batch counted before the loss shifts them are too many by one for each row whose first label counts."""
    data = documents()
    units = np.arange(len(data))
    streams = [np.concatenate([data.tokens[i], data.targets[i][-1:]]) for i in units]
    before = sum(len(stream) for stream in streams)  # labels = input_ids
    batch = batch_of(data, units)
    assert batch.counts.sum() == before - len(units) == (batch.targets[0] != NO_LABEL).sum()
    model, (ids, mask, _) = model_of(), as_theirs(data, units)
    labels = ids.masked_fill(mask == 0, NO_LABEL)
    summed = twin(model.body)(ids, attention_mask=mask, labels=labels, num_items_in_batch=1).loss.item()
    assert CausalLM.loss(None, model(batch)[1], batch).sum().item() == pytest.approx(summed, rel=1e-6)
    naive = summed / (labels != NO_LABEL).sum()
    assert naive < summed / batch.counts.sum() * 0.95


@pytest.mark.parametrize("method", ["lora:rank=2,sites=word", "lora:rank=2,sites=qkv", "full"])
def test_the_head_sees_what_a_method_adds_to_the_table(method):
    model, data = model_of(method), documents()
    batch = batch_of(data, np.arange(len(data)))
    before = model(batch)[1][0]
    merge(model.body)
    close(model(batch)[1][0], before, "losses after merging")
    if "word" in method:
        plain = model_of("full")
        with torch.no_grad():
            plain.body.load_state_dict(model.body.state_dict())
        close(plain(batch)[1][0], before, "losses of the plain model with the merged table")


def test_perplexity_is_of_all_tokens_and_not_a_mean_of_batches():
    """By hand from the losses of transformers: per token, word and byte; a mean of the means of batches is another figure."""
    data, model, task = documents("within"), model_of(), CausalLM(None, 16, "within")
    reference, total, means, count = twin(model.body), 0.0, [], 0
    for i in range(len(data)):
        ids, mask, labels = as_theirs(data, np.array([i]))
        loss = reference(ids, attention_mask=mask, labels=labels).loss.item()
        total, count, means = (
            total + loss * int((labels != NO_LABEL).sum()),
            count + int((labels != NO_LABEL).sum()),
            [*means, loss],
        )
    words, octets = 6 + 1 + 0 + 7, sum(len(text.encode()) for text in TEXTS)
    assert count == octets + len(TEXTS)
    for size in (1, 3, 50):
        found = evaluate(model, task, data, size, Float32()).metrics
        expected = {"perplexity": np.exp(total / count), "word_perplexity": np.exp(total / words)}
        expected |= {"bits_per_byte": total / np.log(2) / octets, "loss": total / count}
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-6), name  # their loss is in float32
    assert abs(np.exp(np.mean(means)) / np.exp(total / count) - 1) > 1e-3
