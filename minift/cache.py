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
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from minift.bar import bar
from minift.data.batching import Batch, Data, by_length
from minift.distributed import count, rank
from minift.errors import UserError, say
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
        low = precision.dtype if precision.dtype.itemsize < 4 else None  # a body in float64 stays so
        self.modules = [folded(module, low) for module in islice(body.walk(), done)]

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
        self.as_evaluated = data.as_evaluated

    def __getattr__(self, name: str):
        """What a task looks up of its own data besides the contract, in `meter` and `predict`."""
        if name == "data":  # of an empty object, as a copy begins
            raise AttributeError(name)
        return getattr(self.data, name)

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

    Variant v of unit u has the number v N + u. What is "unit" (a pooled vector, a map) lies at its number. What is "ragged" lies
    without padding, one unit behind the other: of units of 4, 2 and 3 tokens one tensor (9, D), unit 1 at the positions 4 and 5.
    A batch of units 1 and 2 is read back as (2, 3, D), its padding 0, and what is "real", the mask, follows from the lengths.
    Targets and counts come from the data, as they do without a cache.
    """

    def __init__(self, data: Data, frozen: FrozenStages, batch_size: int, device: torch.device, file: Path | None = None):
        """file: where the tensors lie, new; None: in memory. device: on which the stages run; what is kept lies on the CPU."""
        super().__init__(data, frozen)
        N, V = len(data), data.variants
        self.start = np.cumsum(np.tile(data.lengths, V)) - np.tile(data.lengths, V)  # (V N) first position of each
        first = next(super().batches([np.zeros(1, dtype=np.int64)], device)).state
        self.empty, self.stored = first.only(), {}
        for name, kind in self.kept().items():
            shape = self.shape(kind, getattr(first, name))
            beside = file and file.with_name(f"{file.stem}-{name}{file.suffix}")
            self.stored[name] = new_tensor(shape, getattr(first, name).dtype, beside)
        order = by_length(data.lengths, batch_size)
        with bar("frozen stages", N * V) as shown:
            for variant in range(V):
                for units, batch in zip(order, super().batches(order, device, variant), strict=True):
                    self.store(variant * N + units, batch)
                    shown.update(len(units))

    def store(self, numbers: np.ndarray, batch: Batch) -> None:
        """What the frozen stages have left of these variants of units."""
        for name, kind in self.kept().items():
            output = getattr(batch.state, name).cpu()
            if kind == "ragged":
                real = torch.from_numpy(self.real(numbers % len(self)))
                self.stored[name][self.positions(numbers)] = output[real]  # (B, S, ...) -> (T, ...)
            else:
                self.stored[name][torch.from_numpy(numbers)] = output

    def kept(self) -> dict[str, str]:
        """Of what the body says that it carries: all that must be stored."""
        return {name: kind for name, kind in self.frozen.carried.items() if kind != "real"}

    def shape(self, kind: str, one: Tensor) -> tuple[int, ...]:
        """Of the tensor that holds a field of all units; one: the field of a batch of one unit."""
        if kind == "ragged":
            return (int(self.lengths.sum()) * self.variants, *one.shape[2:])
        return (len(self) * self.variants, *one.shape[1:])

    def real(self, units: np.ndarray) -> np.ndarray:
        """(B, S) whether there is a token, as the mask of a batch says."""
        return np.arange(self.lengths[units].max()) < self.lengths[units][:, None]

    def positions(self, numbers: np.ndarray) -> Tensor:
        """(T) where the tokens of these variants of units lie."""
        units = numbers % len(self)
        at = self.start[numbers][:, None] + np.arange(self.lengths[units].max())
        return torch.from_numpy(at[self.real(units)])

    def batches(self, order: list[np.ndarray], device: torch.device, epoch: int | None = None) -> Iterator[Batch]:
        if epoch is None and not self.as_evaluated:  # kept are augmented pictures, and evaluation sees plain ones
            return super().batches(order, device, None)
        return (self.batch(units, epoch).to(device) for units in order)

    def batch(self, units: np.ndarray, epoch: int | None) -> Batch:
        numbers, fields = (epoch or 0) % self.variants * len(self) + units, {}
        real = torch.from_numpy(self.real(units))
        for name, kind in self.frozen.carried.items():
            if kind == "real":
                fields[name] = None if real.all() else real
            elif kind == "unit":
                fields[name] = self.stored[name][torch.from_numpy(numbers)]
            else:
                kept = self.stored[name][self.positions(numbers)]
                if real.all():
                    fields[name] = kept.view(*real.shape, *kept.shape[1:])  # (T, ...) -> (B, S, ...)
                else:
                    fields[name] = kept.new_zeros(*real.shape, *kept.shape[1:])
                    fields[name][real] = kept
        return replace(self.data.outline(units, epoch), state=self.empty.only(**fields), done=self.frozen.done)


def new_tensor(shape: tuple[int, ...], dtype: torch.dtype, file: Path | None) -> Tensor:
    """An empty tensor in memory, or in a file that is gone with the process; on Windows it stays and may be deleted."""
    if file is None:
        return torch.empty(shape, dtype=dtype)
    tensor = torch.from_file(str(file), shared=True, size=math.prod(shape), dtype=dtype).view(shape)
    with contextlib.suppress(PermissionError):  # Windows keeps a mapped file
        file.unlink()
    return tensor


def bytes_needed(data: Data, frozen: FrozenStages, device: torch.device) -> int:
    """Of everything that `CachedFeatures` would hold."""
    state = next(OnTheFly(data, frozen).batches([np.zeros(1, dtype=np.int64)], device)).state
    sizes = {name: getattr(state, name) for name, kind in frozen.carried.items() if kind != "real"}
    pieces = {name: int(data.lengths.sum()) if frozen.carried[name] == "ragged" else len(data) for name in sizes}
    each = {name: t.nbytes // (t.shape[1] if frozen.carried[name] == "ragged" else 1) for name, t in sizes.items()}
    return sum(each[name] * pieces[name] for name in sizes) * data.variants


def keep(
    data: dict[str, Data],
    body: nn.Module,
    precision: AbstractContextManager,
    device: torch.device,
    options,
    directory: Path,
    earlier: dict[str, bool] | None = None,
) -> tuple[dict[str, Data], float]:
    """(the splits of a run as seen through its frozen stages, or as they are where there are none; the seconds that took)

    options: batch_size, and cache: memory, disk (in `directory`), off (computed for every batch), or auto: in memory up to a
    quarter of the machine's, then on disk up to half of what is free, then off. Data that is new in every epoch (`variants` is
    None), and the test split, which is read once, are never kept.
    earlier: split -> whether a run that goes on has kept it so far. The stages round otherwise where each batch goes through them
    anew, so auto stays with that, in memory or on disk, wherever there is room.
    """
    earlier = earlier or {}
    kind, begin = options.cache, time.perf_counter()
    done = depth(body)
    if not done:
        return data, 0.0
    frozen, seen = FrozenStages(body, done, precision), {}
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if count() > 1 else 1  # processes of this machine, each of which keeps all
    memory, disk = memory_of_machine() // 4 // here, shutil.disk_usage(directory).free // 2 // here
    for split, rows in data.items():
        if rows.variants is None or kind == "off" or split == "test":
            seen[split] = OnTheFly(rows, frozen)
            why = "read once" if split == "test" else "new in every epoch" if rows.variants is None else "as --cache off says"
            print(f"frozen  {split}: computed for every batch, {why}")
            continue
        size = bytes_needed(rows, frozen, device)
        place = kind if kind != "auto" else "memory" if size <= memory else "disk" if size <= disk else "off"
        if kind == "auto" and earlier.get(split, place != "off") != (place != "off"):
            if place == "off":
                say(f"note: {split}: frozen features were kept so far, and there is no room for them now: the last bits differ")
            else:
                place = "off"
        room = {"memory": memory * 4, "disk": disk * 2}.get(place, size)
        if size > room:
            raise UserError(
                f"--cache {kind}: {split} needs {size / 2**30:,.1f} GB, and there are {room / 2**30:,.1f}; leave it to auto"
            )
        if place == "off":
            seen[split] = OnTheFly(rows, frozen)
            why = "not kept so far" if earlier.get(split) is False else "too many to keep"
            print(f"frozen  {split}: {size / 2**30:,.1f} GB are {why}, so computed for every batch")
            continue
        start = time.perf_counter()
        file = directory / f"frozen-{split}-{rank()}.bin" if place == "disk" else None
        seen[split] = CachedFeatures(rows, frozen, options.batch_size, device, file)
        memory, disk = (memory - size, disk) if place == "memory" else (memory, disk - size)
        seconds = time.perf_counter() - start
        variants = f" x {rows.variants} views" if rows.variants > 1 else ""
        figures = f"{len(rows) * rows.variants / seconds:,.0f} rows/s, {size / 2**20:,.1f} MB kept {PLACES[place]}"
        print(f"frozen  {split}: {len(rows):,} rows{variants} computed once, {figures}", flush=True)
    return seen, time.perf_counter() - begin


def memory_of_machine() -> int:
    """Bytes, or those that the container may have; 4 GiB where the system does not tell."""
    sizes = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(ValueError, OSError):
            sizes.append(int(Path(limit).read_text()))
    return min(sizes, default=4 << 30)
