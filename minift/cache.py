"""Frozen stages: run lean, and their output computed once for each unit and kept.

The lowest stages in which nothing trains give the same output for the same input as long as the run lasts. `FrozenStages` computes
it without a graph, with every BatchNorm folded into the convolution before it:

    BN(conv(x; W)) = conv(x; W gamma/sigma) + beta - mu gamma/sigma,    sigma = sqrt(var + eps)

`CachedFeatures` holds it for every unit, and every variant of a unit, and hands it out in batches from which `body.resume` goes on;
`OnTheFly` runs the stages for every batch, where each epoch sees new pictures or nothing can be kept. What flows over the boundary
and how it is shaped the body says in `carried`; no field of a State is known here by name.

Axes: B units of a batch, S sequence, T positions of all units together.
Proved by tests/test_cache.py: stored bits come back as they are, runs equal those without a cache.
"""

import contextlib
import copy
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from minift.data.batching import Batch, by_length
from minift.errors import UserError
from minift.methods.surgery import trains

PLACES = {"memory": "in memory", "disk": "on disk"}


def depth(body: nn.Module) -> int:
    """How many modules of `body.walk()` are frozen: those of the lowest stages in which nothing trains."""
    done = 0
    for names in body.stages.values():
        modules = [body.get_submodule(name) for name in names]
        if any(trains(module) for module in modules):
            break
        done += len(modules)
    return done


class FrozenStages:
    """The lowest `done` modules of a body: batch in, batch with the state that they leave out.

    precision: the run's, entered around every forward. Of modules with a BatchNorm this holds copies with the BatchNorm folded in,
    in channels-last order; the others are the body's own.
    """

    def __init__(self, body: nn.Module, done: int, precision: AbstractContextManager):
        self.body = body
        self.done = done
        self.precision = precision
        self.complete = done == len(list(body.walk()))
        self.carried = body.carried(done)
        self.modules = [folded(module, getattr(precision, "dtype", None)) for module in islice(body.walk(), done)]

    def __call__(self, batch: Batch) -> Batch:
        with torch.inference_mode(), self.precision:
            state = self.body.begin(*batch.inputs)
            for module in self.modules:
                state = module(state)
        # what is handed on must be an ordinary tensor: a graph cannot save one that was made in inference mode
        fields = {name: getattr(state, name) for name in self.carried}
        state = state.only(**{name: value if value is None else value.clone() for name, value in fields.items()})
        return replace(batch, inputs=(), state=state, done=self.done)


def folded(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy of `module` in evaluation and in dtype, its BatchNorms folded away; the module itself where it has none."""
    if not any(isinstance(m, nn.BatchNorm2d) for m in module.modules()):
        return module
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for parent in module.modules():
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in module.modules()), "a BatchNorm does not stand behind a convolution"
    return module.to(dtype=dtype, memory_format=torch.channels_last)


class OnTheFly(Data):
    """Data seen through frozen stages, which run for every batch."""

    def __init__(self, data: Data, frozen: FrozenStages):
        self.data = data
        self.frozen = frozen
        self.lengths = data.lengths
        self.variants = data.variants

    @property
    def rows(self) -> np.ndarray:
        return self.data.rows

    def order(self, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
        return self.data.order(batch_size, seed, epoch)

    def describe(self) -> dict[str, int | str]:
        return self.data.describe()

    def batches(self, order: list[np.ndarray], device: torch.device, epoch: int | None = None) -> Iterator[Batch]:
        with contextlib.closing(self.data.batches(order, device, epoch)) as stream:
            for batch in stream:
                yield self.frozen(batch)


class CachedFeatures(OnTheFly):
    """Data seen through frozen stages whose output was kept for every variant of every unit.

    Say, three texts of 4, 2 and 3 tokens, of which the frozen stages leave `hidden` ("ragged") and `mask` ("real"): `stored` holds
    one tensor (9, D), in which the units lie one behind the other without padding, in the order in which they were computed:

        positions  4   2   3          of unit 0, 1, 2
        start      0   7   4          where unit 2 was computed before unit 1

    A batch of units 1 and 0 is read back as `hidden` (2, 4, D), its padding 0, and `mask` (2, 4) from the positions. What is "unit"
    (a pooled vector, a map) has one position. Variant v of unit u has the number v N + u.
    What else a batch holds, targets and counts above all, is kept as it came.
    """

    def __init__(self, data: Data, frozen: FrozenStages, batch_size: int, device: torch.device, file: Path | None = None):
        """file: where the tensor lies, new; None: in memory. device: on which the stages run; what is kept lies on the CPU."""
        super().__init__(data, frozen)
        N, V = len(data), data.variants
        first = next(super().batches([np.zeros(1, dtype=np.int64)], device))
        self.empty = first.state.only()
        (self.name, tensor), self.mask = kept_field(first, frozen)
        self.positions = np.tile(data.lengths if self.ragged else np.ones(N, dtype=np.int64), V)
        self.start = np.zeros(N * V, dtype=np.int64)
        self.stored = new_tensor((int(self.positions.sum()), *tensor.shape[1 + self.ragged :]), tensor.dtype, file)
        self.batch_of: list[tuple[Batch, int] | None] = [None] * (N * V)  # what came with each unit, and its place in there
        order, filled = by_length(data.lengths, batch_size), 0
        bar = tqdm(total=N * V, desc="frozen stages", unit="row", leave=False, disable=None)
        for variant in range(V):
            for units, batch in zip(order, super().batches(order, device, variant), strict=True):
                output = getattr(batch.state, self.name)
                if self.ragged:
                    output = output[real(data.lengths[units], output.shape[1]).to(output.device)]  # (B, S, ...) -> (T, ...)
                numbers = variant * N + units
                self.start[numbers] = filled + np.cumsum(self.positions[numbers]) - self.positions[numbers]
                self.stored[filled : filled + len(output)] = output.cpu()
                filled += len(output)
                bar.update(len(units))
        bar.close()
def new_tensor(shape: tuple[int, ...], dtype: torch.dtype, file: Path | None) -> Tensor:
    """An empty tensor in memory, or in a file that is gone with the process; on Windows it stays and may be deleted."""
    if file is None:
        return torch.empty(shape, dtype=dtype)
    tensor = torch.from_file(str(file), shared=True, size=math.prod(shape), dtype=dtype).view(shape)
    with contextlib.suppress(PermissionError):  # Windows keeps a mapped file
        file.unlink()
    return tensor


def bytes_needed(data, trunk: Trunk, device: torch.device) -> int:
    """Of everything that `Kept` would hold."""
    state, output = pieces(next(Recomputed(data, trunk).batches([np.zeros(1, dtype=np.int64)], device)), trunk)
    units = int(data.lengths.sum()) if is_ragged(state, trunk) else len(data)
    return output.nbytes // len(output) * units * data.draws


def keep(
    data: dict[str, object],
    body: nn.Module,
    precision: AbstractContextManager,
    device: torch.device,
    batch_size: int,
    kind: str,
    directory: Path,
) -> dict:
    """The splits of a run as seen through its frozen trunk; as they are where there is none.

    kind: memory, disk (in `directory`), off (computed afresh every time), or auto: in memory up to a quarter of the machine's,
    then on disk up to half of what is free, then off. Data that is new in every epoch (`draws` is None) is never kept.
    """
    done = depth(body)
    if not done:
        return data
    trunk, seen = Trunk(body, done, precision), {}
    memory, disk = memory_of_machine() // 4, shutil.disk_usage(directory).free // 2
    for split, rows in data.items():
        if rows.draws is None or kind == "off":
            seen[split] = Recomputed(rows, trunk)
            print(f"trunk  {split}: {'new in every epoch, so ' if rows.draws is None else ''}computed for every batch")
            continue
        size = bytes_needed(rows, trunk, device)
        place = kind if kind != "auto" else "memory" if size <= memory else "disk" if size <= disk else "off"
        room = {"memory": memory * 4, "disk": disk * 2}.get(place, size)
        if size > room:
            raise UserError(
                f"--cache {kind}: {split} needs {size / 2**30:,.1f} GB, and there are {room / 2**30:,.1f}; leave it to auto"
            )
        if place == "off":
            seen[split] = Recomputed(rows, trunk)
            print(f"trunk  {split}: {size / 2**30:,.1f} GB are too many to keep, so computed for every batch")
            continue
        start = time.perf_counter()
        seen[split] = Kept(rows, trunk, batch_size, device, directory / f"trunk-{split}.bin" if place == "disk" else None)
        memory, disk = (memory - size, disk) if place == "memory" else (memory, disk - size)
        seconds = time.perf_counter() - start
        views = f" x {rows.draws} views" if rows.draws > 1 else ""
        figures = f"{len(rows) * rows.draws / seconds:,.0f} rows/s, {size / 2**20:,.1f} MB kept {PLACES[place]}"
        print(f"trunk  {split}: {len(rows):,} rows{views} computed once, {figures}", flush=True)
    return seen


def memory_of_machine() -> int:
    """Bytes, or those that the container may have; 4 GiB where the system does not tell."""
    sizes = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(ValueError, OSError):
            sizes.append(int(Path(limit).read_text()))
    return min(sizes, default=4 << 30)
