"""minift.methods.bitfit against a loop written out in torch: the biases take SGD's steps, nothing else moves."""

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
import transformers
from loop import batch_of, classifier, logits
from tiny import tiny_body, tiny_gpt2, tiny_resnet

from minift.formats.huggingface import names, to_huggingface, turned
from minift.methods.bitfit import bitfit
from minift.methods.surgery import freeze
from minift.optim.groups import make_groups
from minift.optim.sgd import SGD

LR = 0.1


def inputs(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(tokens, mask, labels) of a step."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(5, 80, (6, 9), generator=generator)
    return tokens, torch.arange(9) < torch.tensor([9, 9, 5, 4, 3, 2])[:, None], torch.randint(3, (6,), generator=generator)


TWINS = {
    "bert": (tiny_body, {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}, "Bert"),
    "gpt2": (tiny_gpt2, {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}, "GPT2"),
}


@pytest.mark.parametrize("kind", TWINS)
def test_three_steps_of_sgd_on_the_biases_of_a_transformers_twin(kind):
    torch.manual_seed(0)
    make, still, name = TWINS[kind]
    body = make(**still).double()
    config, model = (getattr(transformers, f"{name}{part}") for part in ("Config", "Model"))
    reference = model(config(**asdict(body.config))).double().train()
    reference.load_state_dict(to_huggingface({n: t.detach().clone() for n, t in body.state_dict().items()}, body, ""))
    freeze(body)
    bitfit(body)
    model = classifier(body, 3).double().train()
    head = torch.nn.Linear(16, 3, bias=kind == "bert").double()
    head.load_state_dict(model.head.state_dict())
    optimizer = SGD(make_groups(model, LR, weight_decay=0.01), momentum=0.0)

    for step in range(3):
        tokens, mask, labels = inputs(step)
        F.cross_entropy(logits(model, batch_of((tokens, mask, None))), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        output = reference(input_ids=tokens, attention_mask=mask.long())
        pooled = output.pooler_output if kind == "bert" else output.last_hidden_state[torch.arange(6), mask.sum(1) - 1]
        loss = F.cross_entropy(head(pooled), labels)
        biases = {name: p for name, p in reference.named_parameters() if name.endswith("bias")}
        trained = [*biases.values(), *head.parameters()]
        with torch.no_grad():
            for p, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
                decayed = gradient + 0.01 * p if p is head.weight else gradient
                p -= LR * decayed

    theirs = reference.state_dict()
    start = make().double().state_dict()
    for ours, name in names(body).items():
        expected = turned(name, theirs[name], body)
        torch.testing.assert_close(body.get_parameter(ours).detach(), expected, rtol=0, atol=1e-12, msg=ours)
        if not ours.endswith("bias"):
            assert torch.equal(body.get_parameter(ours), start[ours]), ours
        elif not ours.endswith("key.bias"):  # a softmax does not change when all its scores do: nothing moves but rounding
            assert (body.get_parameter(ours) - start[ours]).abs().max() > 1e-6, ours
    torch.testing.assert_close(dict(model.head.named_parameters()), dict(head.named_parameters()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [tiny_body, tiny_gpt2, tiny_resnet])
def test_exactly_the_biases_train(make):
    body = make()
    freeze(body)
    bitfit(body)
    trained = {name for name, p in body.named_parameters() if p.requires_grad}
    assert trained and trained == {name for name, _ in body.named_parameters() if name.endswith(".bias")}
