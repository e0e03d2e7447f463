"""The training loop against transformers' model, torch's AdamW and transformers' schedule: losses and weights of 20 steps."""

import json
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from loop import classifier, encoded, train_with
from tiny import CONFIG, converted_directory, tiny_body

from minift.data.batching import shuffled
from minift.data.tokenising import Encoded
from minift.formats.huggingface import to_huggingface
from minift.methods import full, probe
from minift.methods.surgery import freeze
from minift.optim.adamw import AdamW
from minift.optim.groups import make_groups
from minift.optim.schedules import linear
from minift.pretrained import read
from minift.runs import Run
from minift.tasks.classification import Classification

LR, DECAY, CLIP, BATCH, EPOCHS, SEED = 1e-2, 0.1, 0.5, 4, 2, 7


def rows() -> Encoded:
    """37 rows of 2 to 9 tokens, some as pairs: 10 batches an epoch, padded and not, the last one ragged."""
    random = np.random.default_rng(0)
    lengths = random.integers(2, 10, 37)
    tokens = [random.integers(5, CONFIG.vocab_size, n) for n in lengths]
    types = [(np.arange(n) >= n // 2).astype(np.int64) for n in lengths]
    return encoded(tokens, random.integers(0, 3, 37), types)


@pytest.mark.parametrize("method", [full.full, probe.probe])
def test_twenty_steps(tmp_path, method):
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    base = converted_directory(tmp_path / "base", tiny_body(**no_dropout))
    data, task = rows(), Classification(["a", "b", "c"], "cls")
    body = read(base).body(dtype=torch.float64)
    freeze(body)
    method(body)
    model = classifier(body, 3).double()

    reference = transformers.BertForSequenceClassification(transformers.BertConfig(**asdict(body.config), num_labels=3)).double()
    weights = to_huggingface(body.state_dict(), body, "bert.") | {f"classifier.{n}": t for n, t in model.head.state_dict().items()}
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    reference.load_state_dict(weights, strict=True)
    reference.bert.requires_grad_(method is full.full)

    # minift
    optimizer = AdamW(make_groups(model, LR, DECAY))
    run = Run(tmp_path / "run", read(base))
    run.template.task = {"name": "classification"}
    schedule = partial(linear, T=20, W=4)
    progress = train_with(model, task, data, optimizer, run, schedule, epochs=EPOCHS, batch_size=BATCH, clip=CLIP, seed=SEED)
    assert progress.step == 20
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    # transformers and torch, on the same rows in the same order
    decayed = set(transformers.Trainer.get_decay_parameter_names(None, reference))
    named = [(name, p) for name, p in reference.named_parameters() if p.requires_grad]
    theirs = torch.optim.AdamW(
        [
            {"params": [p for name, p in named if name in decayed], "weight_decay": DECAY},
            {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
        ],
        lr=LR,
    )
    schedule = transformers.get_linear_schedule_with_warmup(theirs, 4, 20)
    reference.train()
    losses = []
    for epoch in range(EPOCHS):
        for batch in shuffled(data.lengths, BATCH, SEED, epoch):
            width = data.lengths[batch].max()
            tokens, mask, types = torch.zeros(3, len(batch), width, dtype=torch.long)
            for i, row in enumerate(batch):
                n = data.lengths[row]
                tokens[i, :n], mask[i, :n], types[i, :n] = (
                    torch.from_numpy(data.tokens[row]),
                    1,
                    torch.from_numpy(data.token_types[row]),
                )
            loss = reference(tokens, mask, types, labels=torch.from_numpy(data.targets[0][batch])).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(reference.parameters(), CLIP)
            theirs.step()
            schedule.step()
            theirs.zero_grad()
            losses.append(loss.item())

    np.testing.assert_allclose([event["loss"] for event in events], losses, rtol=0, atol=1e-9)
    after = to_huggingface(body.state_dict(), body, "bert.") | {f"classifier.{n}": t for n, t in model.head.state_dict().items()}
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-9, msg=name)
        moved = not torch.equal(tensor, weights[name])
        assert moved == (method is full.full or name.startswith("classifier")) or "key.bias" in name, name
