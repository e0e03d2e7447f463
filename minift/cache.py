"""The frozen trunk of a body: run lean, and its output computed once per example and kept.

The lowest stages in which nothing trains give the same output for the same input as long as the run lasts. `Trunk` computes it
without a graph, with every BatchNorm folded into the convolution before it:

    BN(conv(x; W)) = conv(x; W gamma/sigma) + beta - mu gamma/sigma,    sigma = sqrt(var + eps)

`Kept` holds it for every row and hands it out in batches from which `body.resume` goes on; `Recomputed` runs the trunk afresh for
every batch, where each epoch sees new pictures or nothing can be kept.

Axes: B rows of a batch, S sequence, T tokens of all rows together.
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
KINDS = ("auto", *PLACES, "off")


def depth(body: nn.Module) -> int:
    """How many modules of `body.walk()` belong to the trunk: those of the lowest stages in which nothing trains."""
    done = 0
    for names in body.stages.values():
        modules = [body.get_submodule(name) for name in names]
        if any(trains(module) for module in modules):
            break
        done += len(modules)
    return done


class Trunk:
    """The lowest `done` modules of a body, frozen: batch in, batch with the state that they leave out.

    precision: the run's, as `optim.precision.around` makes it. Of modules with a BatchNorm the trunk holds copies with the
    BatchNorm folded in, in channels-last order; the others are the body's own.
    """

    def __init__(self, body: nn.Module, done: int, precision: AbstractContextManager):
        self.body = body
        self.done = done
        self.precision = precision
        self.complete = done == len(list(body.walk()))
        self.modules = [folded(module, getattr(precision, "dtype", None)) for module in islice(body.walk(), done)]

    def __call__(self, batch: Batch) -> Batch:
        with torch.inference_mode(), self.precision:
            state = self.body.begin(*batch.inputs)
            for module in self.modules:
                state = module(state)
        kept = {"pooled": state.pooled} if self.complete else {"hidden": state.hidden}
        if getattr(state, "mask", None) is not None and not self.complete:
            kept["mask"] = state.mask
        # what is handed on must be an ordinary tensor: a graph cannot save one that was made in inference mode
        state = state._make([None] * len(state))._replace(**{name: tensor.clone() for name, tensor in kept.items()})
        return Batch((), batch.labels, state, self.done)


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


def is_ragged(state: tuple, trunk: Trunk) -> bool:
    """Whether what the trunk leaves of a row is as long as the row: BERT's hidden states are, what is pooled is not."""
    return "mask" in state._fields and not trunk.complete


def pieces(batch: Batch, trunk: Trunk) -> tuple[tuple, Tensor]:
    """(a state without tensors, what is to be kept of the batch's: (B, ...), or (T, D) without padding where rows differ)"""
    state = batch.state
    output = state.pooled if trunk.complete else state.hidden
    if is_ragged(state, trunk):
        output = output.flatten(0, 1) if state.mask is None else output[state.mask]  # (B, S, D) -> (T, D)
    return state._make([None] * len(state)), output


@dataclass
class Recomputed:
    """Data seen through the trunk, which runs for every batch."""

    data: object
    trunk: Trunk

    def __len__(self) -> int:
        return len(self.data)

    def describe(self) -> dict[str, int]:
        return self.data.describe()

    @property
    def lengths(self) -> np.ndarray:
        return self.data.lengths

    @property
    def draws(self) -> int | None:
        return self.data.draws

    @property
    def labels(self) -> np.ndarray | None:
        return self.data.labels

    def batches(self, order: list[np.ndarray], device: torch.device, epoch: int | None = None) -> Iterator[Batch]:
        with contextlib.closing(self.data.batches(order, device, epoch)) as stream:
            for batch in stream:
                yield self.trunk(batch)


class Kept(Recomputed):
    """Data seen through the trunk, whose output was kept for every row, or for every row of each of its `data.draws` views.

    Rows of different lengths (BERT's) lie one behind the other without padding, so that what a row has is read back as one piece.
    """

    def __init__(self, data, trunk: Trunk, batch_size: int, device: torch.device, file: Path | None = None):
        """file: where the tensor lies, new; None: in memory. device: on which the trunk runs; what is kept lies on the CPU."""
        super().__init__(data, trunk)
        N = len(data)
        self.empty, output = pieces(next(super().batches([np.zeros(1, dtype=np.int64)], device)), trunk)
        self.ragged = is_ragged(self.empty, trunk)
        self.sizes = np.tile(data.lengths if self.ragged else np.ones(N, dtype=np.int64), data.draws)  # pieces of each row
        self.starts = np.zeros(N * data.draws, dtype=np.int64)
        self.flat = new_tensor((int(self.sizes.sum()), *output.shape[1:]), output.dtype, file)
        order, used = by_length(data.lengths, batch_size), 0
        bar = tqdm(total=N * data.draws, desc="frozen trunk", unit="row", leave=False, disable=None)
        for view in range(data.draws):
            for rows, batch in zip(order, super().batches(order, device, view), strict=True):
                _, output = pieces(batch, trunk)
                at = view * N + rows
                self.starts[at] = used + np.cumsum(self.sizes[at]) - self.sizes[at]
                self.flat[used : used + len(output)] = output.cpu()
                used += len(output)
                bar.update(len(rows))
        bar.close()

    def batches(self, order: list[np.ndarray], device: torch.device, epoch: int | None = None) -> Iterator[Batch]:
        return (self.collate(rows + (epoch or 0) % self.data.draws * len(self)).to(device) for rows in order)

    def collate(self, rows: np.ndarray) -> Batch:
        """rows: numbers of rows, N added for each view before theirs."""
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows % len(self)])
        if not self.ragged:
            output = self.flat[torch.from_numpy(self.starts[rows])]
            state = self.empty._replace(**{"pooled" if self.trunk.complete else "hidden": output})
            return Batch((), labels, state, self.trunk.done)
        sizes = self.sizes[rows]
        real = np.arange(sizes.max()) < sizes[:, None]  # (B, S)
        output = self.flat[torch.from_numpy((self.starts[rows][:, None] + np.arange(sizes.max()))[real])]  # (T of these rows, D)
        if real.all():
            return Batch((), labels, self.empty._replace(hidden=output.view(*real.shape, -1)), self.trunk.done)
        mask = torch.from_numpy(real)
        hidden = output.new_zeros(*real.shape, output.shape[-1])  # (B, S, D)
        hidden[mask] = output
        return Batch((), labels, self.empty._replace(hidden=hidden, mask=mask), self.trunk.done)


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
