"""A tour of minift in cells, for an editor that runs cells (`# %%`), or `python tests/tour.py`.

From the embedded checkpoint to a fine-tuned model, by hand: what train.py does, without its files, flags and checks.
"""

# %% Load: the embedded BERT (MiniLM, 6 layers) and a few of the embedded reviews
import csv

import torch
import torch.nn.functional as F

from minift.data.samples import REVIEWS
from minift.data.tokenising import pad
from minift.formats.huggingface import to_huggingface
from minift.methods.lora import LoRA
from minift.methods.surgery import freeze, merge, wrap
from minift.optim.adamw import AdamW
from minift.optim.groups import clip_gradients, make_groups
from minift.optim.schedules import linear
from minift.pretrained import find, read
from minift.tasks.task import Model, PooledLinear

torch.manual_seed(0)
checkpoint = read(find("minilm-l6"))
body = checkpoint.body(pool="mean")
with REVIEWS.open(encoding="utf-8", newline="") as file:
    rows = [row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row["kind"] == "plain"][:96]
texts, labels = [row["text"] for row in rows], torch.tensor([row["label"] == "positive" for row in rows]).long()  # (N)
print(texts[0], "->", rows[0]["label"])

# %% Look inside: a text becomes ids, the ids go through stages, a stage is a few modules
ids = [encoding.ids[:48] for encoding in checkpoint.tokenizer.encode_batch(texts)]
print(ids[0], [checkpoint.tokenizer.id_to_token(i) for i in ids[0]])
tokens, mask, _ = pad(ids, checkpoint.tokenizer.token_to_id("[PAD]"))  # (N, S) each; mask is True where there is a token
state = body.eval().begin(tokens[:2], None if mask is None else mask[:2])
for stage in body.walk():
    state = stage(state)
    h = state.hidden  # (2, S, D)
    print(f"{type(stage).__name__:12s} mean {h.mean():+.3f}  deviation {h.std():.3f}  {tuple(h.shape)}")
print("pooled", tuple(state.pooled.shape))  # (2, D): what a head reads

# %% LoRA by hand: y = W x + b + s B A x beside the queries and values; nothing else of the body trains
freeze(body)
sites = {
    f"layers.{i}.attention.{name}": getattr(layer.attention, name)
    for i, layer in enumerate(body.layers)
    for name in ("query", "value")
}
wrap(body, sites, lambda layer: LoRA(layer, rank=4, scale=2.0, dropout=0.0))
query = body.layers[0].attention.query
x = torch.randn(3, 384)
torch.testing.assert_close(query(x), query.base(x))  # B starts as 0, so the model starts as the pretrained one
with torch.no_grad():
    query.B.normal_()
torch.testing.assert_close(query(x), query.base(x) + 2.0 * x @ query.A.T @ query.B.T)
with torch.no_grad():
    query.B.zero_()

# %% Train: a head, AdamW, a schedule with warm-up, clipped gradients: one epoch over the first 64 reviews
model = Model(body, PooledLinear(body, outputs=2))
optimizer = AdamW(make_groups(model, lr=5e-3, weight_decay=0.01))
trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
print(f"{trained:,} of {sum(p.numel() for p in model.parameters()):,} parameters train")


def logits_of(model, part):
    state = model.body(tokens[part], None if mask is None else mask[part])
    return model.head(state, None)


def accuracy(model, part):
    model.eval()
    with torch.inference_mode():
        return (logits_of(model, part).argmax(-1) == labels[part]).float().mean().item()


train, held_out = torch.arange(64), torch.arange(64, len(rows))
untrained, steps, losses = accuracy(model, held_out), 8, []
model.train()
for step, part in enumerate(train.split(8)):
    loss = F.cross_entropy(logits_of(model, part), labels[part])
    loss.backward()
    clip_gradients([p for group in optimizer.groups for p in group.parameters], 1.0)
    optimizer.step(factor=linear(step + 1, steps + 1, 2))  # on the learning rates: up over two steps, then down
    optimizer.zero_grad()
    losses.append(loss.item())
    print(f"step {step + 1}  loss {losses[-1]:.3f}")
reached = accuracy(model, held_out)
print(f"accuracy on the other reviews: {untrained:.2f} before, {reached:.2f} after")

# %% Merge: W + s B A is a plain weight again, under its old name
with torch.no_grad():
    before = logits_of(model.eval(), held_out)
    merge(body)
    after = logits_of(model, held_out)
assert type(body.layers[0].attention.query) is torch.nn.Linear
print(f"largest change of a logit by merging: {(before - after).abs().max():.1e}")

# %% Export: the names and shapes that transformers knows. With files, flags and checks, all this is one call:
# model = minift.finetune(train="reviews.csv", method="lora:rank=4"), and `python convert.py RUN --to hf`
tensors = to_huggingface(body.state_dict(), body, "bert.")
print(len(tensors), "tensors, the first one", next(iter(tensors)))
