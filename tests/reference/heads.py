"""A tiny model of minift and transformers' with the same weights, in float64: outputs, losses and gradients side by side."""

from dataclasses import asdict

import torch
import transformers
from loop import batch_of
from tiny import tiny_body, tiny_resnet
from torch import Tensor, nn
from twins import images, texts

from minift.data.batching import Batch
from minift.formats.huggingface import to_huggingface
from minift.tasks.task import Model

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def twins_of(task, kind: str, outputs: int, problem_type: str) -> tuple[Model, nn.Module]:
    """(model of the task, transformers' model), equal weights, every one random. kind: bert or resnet."""
    body = tiny_body(**NO_DROPOUT) if kind == "bert" else tiny_resnet()
    model = Model(body, task.head(body)).double().eval()
    generator = torch.Generator().manual_seed(3)
    for p in model.head.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    c = body.config
    if kind == "bert":
        config = transformers.BertConfig(**asdict(c), num_labels=outputs, problem_type=problem_type)
        theirs = transformers.BertForSequenceClassification(config)
    else:
        sizes = {"embedding_size": c.embedding_size, "hidden_sizes": list(c.hidden_sizes), "depths": list(c.depths)}
        config = transformers.ResNetConfig(**sizes, layer_type="bottleneck", num_labels=outputs, problem_type=problem_type)
        theirs = transformers.ResNetForImageClassification(config)
    theirs.double().eval().load_state_dict(in_their_names(model, model.state_dict()), strict=True)
    return model, theirs


def in_their_names(model: Model, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the model under transformers' names. The head's are head.weight and head.bias here."""
    prefix, head = ("bert.", "classifier.") if hasattr(model.body.config, "hidden_size") else ("resnet.", "classifier.1.")
    body = {name.removeprefix("body."): t.clone() for name, t in tensors.items() if name.startswith("body.")}
    heads = {head + name.removeprefix("head."): t.clone() for name, t in tensors.items() if name.startswith("head.")}
    return to_huggingface(body, model.body, prefix) | heads


def inputs_of(kind: str) -> tuple[Tensor, ...]:
    return texts() if kind == "bert" else images()


def compare(task, model: Model, theirs: nn.Module, kind: str, labels: Tensor, batch: Batch, tolerance: float = 1e-10) -> None:
    """The loss of a step and the gradient of every parameter are transformers'. labels: as transformers takes them."""
    given = inputs_of(kind)
    names = ("input_ids", "attention_mask", "token_type_ids") if kind == "bert" else ("pixel_values",)
    expected = theirs(**dict(zip(names, given, strict=True)), labels=labels)
    expected.loss.backward()
    outputs = model(batch)[1]
    torch.testing.assert_close(outputs, expected.logits, rtol=0, atol=tolerance)
    loss = task.loss(outputs, batch).sum() / batch.counts.sum()
    torch.testing.assert_close(loss, expected.loss, rtol=0, atol=tolerance)
    loss.backward()
    ours = in_their_names(model, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    grads = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert ours.keys() == grads.keys() and any(g.abs().max() > 1e-3 for g in grads.values())
    for name, gradient in grads.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=tolerance, msg=name)


def same_training_step(task, model: Model, theirs: nn.Module, batch: Batch, loss_of, in_theirs) -> None:
    """In training mode, with equal draws of dropout, the loss and the gradient of every parameter are transformers'.

    loss_of(theirs, batch): transformers' loss. in_theirs(gradients of the body, of the head): the same under transformers' names.
    """
    for one in (model, theirs):
        one.train()
    torch.manual_seed(1)
    loss = task.loss(model(batch)[1], batch).sum() / batch.counts.sum()
    torch.manual_seed(1)
    expected = loss_of(theirs, batch)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    loss.backward()
    expected.backward()
    gradients = in_theirs(*({name: p.grad for name, p in part.named_parameters()} for part in (model.body, model.head)))
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=0, atol=1e-10, msg=name)
        assert p.grad.any() or "key.bias" in name or "token_type" in name, name


def batch_for(kind: str, targets: Tensor, counts: Tensor | None = None, **fields) -> Batch:
    batch = batch_of(inputs_of(kind), targets)
    return Batch(batch.inputs, batch.targets, batch.rows, batch.counts if counts is None else counts, **fields)
