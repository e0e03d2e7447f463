"""Frozen stages: stored bits come back as they are, and a run on them is the run without."""

import copy
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loop import batch_of, classifier, encoded, logits
from tiny import tiny_body, tiny_efficientnet, tiny_resnet
from torch import nn

from minift.cache import CachedFeatures, FrozenStages, OnTheFly, bytes_needed, depth, keep
from minift.data.batching import Data, by_length, shuffled
from minift.methods.full import partial as thaw_top
from minift.methods.surgery import freeze
from minift.optim.adamw import AdamW
from minift.optim.groups import make_groups
from minift.optim.precision import autocast

CPU = torch.device("cpu")
FULL = autocast(torch.float32)


@dataclass
class Squares(Data):
    """Images in memory; with variants None new noise on them in every epoch, with variants K the noise of K views."""

    images: torch.Tensor
    labels: np.ndarray
    variants: int | None = 1

    def __post_init__(self):
        self.lengths = np.ones(len(self.images), dtype=np.int64)
        self.as_evaluated = self.variants == 1

    def outline(self, units, epoch):
        return replace(batch_of((units,), torch.from_numpy(self.labels[units]), units), inputs=())

    def batches(self, order, device, epoch=None):
        for rows in order:
            view = 0 if epoch is None or self.variants == 1 else 1 + (epoch if self.variants is None else epoch % self.variants)
            random = [torch.Generator().manual_seed(1000 * view + row) for row in rows.tolist()]
            noise = torch.stack([torch.randn(self.images.shape[1:], generator=r) for r in random])
            yield replace(self.outline(rows, epoch), inputs=(self.images[rows] + (noise if view else 0),))


def squares(dtype=torch.float32, variants=1, rows=23):
    random = torch.Generator().manual_seed(1)
    return Squares(torch.randn(rows, 3, 32, 32, generator=random, dtype=dtype), np.arange(rows) % 3, variants)


def texts(rows=23, pairs=False):
    random = np.random.default_rng(0)
    lengths = random.integers(3, 30, rows)
    tokens = [random.integers(5, 60, n) for n in lengths]
    types = [np.arange(n) // (n // 2 + 1) for n in lengths] if pairs else None
    return encoded(tokens, np.arange(rows) % 3, types)


def frozen_model(kind, stages, dtype=torch.float32):
    body = tiny_body(pool="mean") if kind == "bert" else IMAGES[kind]()
    freeze(body)
    if stages:
        thaw_top(body, stages=stages)
    torch.manual_seed(0)
    return classifier(body, 3, "mean").to(dtype)


def train(model, data, epochs=3):
    """Losses of some steps, dropout on where it is."""
    optimizer = AdamW(make_groups(model, 1e-2, 0.01))
    torch.manual_seed(3)
    losses = []
    for epoch in range(epochs):
        model.train()
        for batch in data.batches(shuffled(data.lengths, 5, 0, epoch), CPU, epoch):
            loss = nn.functional.cross_entropy(logits(model, batch), *batch.targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


IMAGES = {"resnet": tiny_resnet, "efficientnet": partial(tiny_efficientnet, drop_connect_rate=0.0)}  # which draws in another order
DATA = {"bert": texts} | dict.fromkeys(IMAGES, squares)


DEPTHS = [("bert", 0, 5), ("bert", 1, 3), ("bert", 4, 0), ("resnet", 0, 5), ("resnet", 2, 2), ("efficientnet", 2, 3)]


@pytest.mark.parametrize(("kind", "stages", "expected"), DEPTHS)
def test_depth_counts_the_modules_of_whole_frozen_stages(kind, stages, expected):
    assert depth(frozen_model(kind, stages).body) == expected


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize(("kind", "stages"), [("bert", 0), ("bert", 2), ("resnet", 0), ("resnet", 1)])
@pytest.mark.parametrize("low", [False, True])
def test_stored_bits_come_back_whatever_the_order(tmp_path, kind, stages, place, low):
    model, data = frozen_model(kind, stages), DATA[kind]()
    frozen = FrozenStages(model.body, depth(model.body), autocast(torch.bfloat16) if low else FULL)
    kept = CachedFeatures(data, frozen, 4, CPU, tmp_path / "kept.bin" if place == "disk" else None)
    order = by_length(data.lengths, 4)
    at = "hidden" if stages else "pooled"
    expected = [None] * len(data)
    for rows, batch in zip(order, OnTheFly(data, frozen).batches(order, CPU), strict=True):
        for i, row in enumerate(rows):
            whole = getattr(batch.state, at)[i]
            expected[row] = whole[: data.lengths[row]] if kind == "bert" and stages else whole
    for seed in range(2):
        for rows, batch in zip(order := shuffled(data.lengths, 6, seed, 0), kept.batches(order, CPU), strict=True):
            for i, row in enumerate(rows):
                got = getattr(batch.state, at)[i]
                got = got[: data.lengths[row]] if kind == "bert" and stages else got
                assert got.dtype == expected[row].dtype and torch.equal(got, expected[row])
            assert torch.equal(batch.targets[0], data.outline(rows, None).targets[0]) and batch.rows is rows
    assert not list(tmp_path.iterdir())
    assert bytes_needed(data, frozen, CPU) == sum(tensor.nbytes for tensor in kept.stored.values())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("kind", "stages"), [("bert", 0), ("bert", 2), ("resnet", 0), ("resnet", 1), ("efficientnet", 2)])
def test_a_run_on_the_cache_is_the_run_without(kind, stages, dtype, tolerance):
    model = frozen_model(kind, stages, dtype)
    data = texts(pairs=True) if kind == "bert" else squares(dtype)
    if kind == "bert":
        model.body.layers[0].attention.attend.p = 0.5  # frozen dropout must not act; that of trained stages differs in its draws
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for layer in model.body.layers[1:]:
            layer.attention.attend.p = 0.0
    runs = []
    for cached in (False, True, True):
        twin = copy.deepcopy(model)
        frozen = FrozenStages(twin.body, depth(twin.body), FULL)
        losses = train(twin, CachedFeatures(data, frozen, 4, CPU) if cached else data)
        runs.append((losses, twin.state_dict()))
    (plain, weights), (first, weights1), (second, weights2) = runs
    assert first == second and all(torch.equal(weights1[name], weights2[name]) for name in weights)
    np.testing.assert_allclose(first, plain, rtol=tolerance, atol=0)
    if dtype == torch.float64:  # in float32 rounding may turn the sign of AdamW's first steps, which are all of one size
        for name, tensor in weights.items():
            torch.testing.assert_close(weights1[name], tensor, rtol=0, atol=tolerance)


def test_variants_are_kept_each_and_come_in_turn():
    model, data = frozen_model("resnet", 0), squares(variants=3)
    frozen = FrozenStages(model.body, depth(model.body), FULL)
    kept, again = CachedFeatures(data, frozen, 4, CPU), OnTheFly(data, frozen)
    order = by_length(data.lengths, 4)
    for epoch in range(7):
        for a, b in zip(kept.batches(order, CPU, epoch), again.batches(order, CPU, epoch), strict=True):
            torch.testing.assert_close(a.state.pooled, b.state.pooled, rtol=0, atol=0)
    first, second, plain = (next(kept.batches(order, CPU, epoch)).state.pooled for epoch in (0, 1, None))
    assert not torch.allclose(first, second)
    torch.testing.assert_close(plain, next(again.batches(order, CPU)).state.pooled, rtol=0, atol=0)


@pytest.mark.parametrize("kind", IMAGES)
def test_folding_leaves_the_body_alone_and_has_no_batch_norm(kind):
    body = IMAGES[kind]().double().eval()
    freeze(body)
    before = copy.deepcopy(body.state_dict())
    frozen = FrozenStages(body, depth(body), FULL)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    state = frozen(batch_of((images,))).state
    torch.testing.assert_close(state.pooled, body(images).pooled, rtol=0, atol=1e-10)
    assert not any(isinstance(m, nn.BatchNorm2d) for module in frozen.modules for m in module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in body.state_dict().items())


def test_where_things_are_kept(tmp_path, monkeypatch, capsys):
    body = frozen_model("resnet", 0).body

    def looking(data, kind, body=body):
        return keep(data, body, FULL, CPU, SimpleNamespace(batch_size=4, cache=kind), tmp_path)[0]

    data = {"train": squares(variants=None), "valid": squares(), "test": squares()}
    seen = looking(data, kind="auto")
    assert [type(seen[split]) for split in data] == [OnTheFly, CachedFeatures, OnTheFly]
    assert type(looking(data, kind="off")["valid"]) is OnTheFly
    monkeypatch.setattr("minift.cache.memory_of_machine", lambda: 0)
    capsys.readouterr()
    assert type(looking(data, kind="auto")["valid"]) is CachedFeatures
    assert "on disk" in capsys.readouterr().out
    monkeypatch.setattr("minift.cache.shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    assert type(looking(data, kind="auto")["valid"]) is OnTheFly
    assert looking(data, body=frozen_model("resnet", 4).body, kind="auto") is data
