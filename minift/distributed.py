"""Several processes, one run: `torchrun --nproc-per-node N train.py ...`, on one machine or on several.

The flags mean what they mean in one process: --batch-size is that of all processes together. Process r of N takes the units r,
r + N, ... of every batch, and the gradient of a step is

    g = sum over processes of the gradient of (sum of the losses of its units / sum of the counts of all units)

which is that of one process on the whole batch. Every process then makes the same update. Every row is scored by one process, and
the meters of a split are merged in the first. Only the first process (rank 0) writes and prints; all of them read the data, and the
directory of the run, which must be on a file system that all of them see.

In a process that is alone every function here returns what it was given. Proved by tests/test_distributed.py: weights, losses and
figures of 2 and 3 processes against one, float64, 1e-10.

What still depends on the number of processes: dropout, of which every process draws its own; the statistics of a BatchNorm that
trains, which are of the units of one process, as in DistributedDataParallel (the first process's are saved); MixUp and CutMix,
which mix the units of one process.
"""

import io
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from minift.data.batching import Data
from minift.errors import Lost, Terminated, UserError

BUCKET = 1 << 23  # elements of gradients that are summed together: few calls, and little memory besides


def rank() -> int:
    """The number of this process; 0, the first, writes and prints."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def together(device: str | None) -> Iterator[None]:
    """Within, the processes that torchrun has started know of each other.

    device: --device. An error in any of them ends all. The first to have one tells; the others end silently.
    """
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"--device {device}: of several processes each takes a GPU of its own; leave it out, or give cpu")
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu:
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise UserError(f"{local + 1} or more processes on this machine, which has {there} GPU{'s' * (there != 1)}; start one "
                            "for each GPU")  # fmt: skip
        torch.cuda.set_device(local)
    store, mine, size = next(dist.rendezvous("env://"))
    # gloo sums what lies on the CPU, as counts and metrics do: no one has to wait for a GPU
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", store=store, rank=mine, world_size=size)
    try:
        with open(os.devnull, "w") as nothing:
            if mine:
                with redirect_stdout(nothing), redirect_stderr(nothing):
                    yield
            else:
                yield
    except (Exception, KeyboardInterrupt) as error:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # torchrun's, as soon as another process has ended, would cut what is told
        if not is_first(store):
            code = 143 if isinstance(error, Terminated) else 130 if isinstance(error, KeyboardInterrupt) else 2
            raise SystemExit(code) from None
        raise
    finally:
        dist.destroy_process_group()


def is_first(store: dist.Store) -> bool:
    """Whether this process is the first to end with an error, so that it tells."""
    try:
        return store.add("minift/ended", 1) == 1
    except RuntimeError:  # the store was in a process that is gone
        return True


@contextmanager
def connected() -> Iterator[None]:
    """A process that has ended makes the others stop, in words of ours."""
    try:
        yield
    except RuntimeError as error:
        raise Lost("another process of this run has ended, so that it cannot go on") from error


# ---- what all processes must agree on ----


def from_first(make: Callable):
    """What `make()` gives in the first process; the others do not call it."""
    if count() == 1:
        return make()
    box = [make() if rank() == 0 else None]
    with connected():
        dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def summed(*values: float) -> list[float]:
    """Of each value the sum over all processes."""
    if count() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    with connected():
        dist.all_reduce(total)
    return total.tolist()


def largest(value: int) -> int:
    """Of all processes."""
    if count() == 1:
        return value
    box = torch.tensor(value)
    with connected():
        dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def wait() -> None:
    """Until all processes are here."""
    largest(0)


# ---- training ----


def share(order: list[np.ndarray]) -> list[np.ndarray]:
    """The units of this process in every batch; of a batch with fewer units than processes there may be none."""
    return [units[rank() :: count()] for units in order]


def sum_gradients(parameters: list[Tensor], loss: Tensor) -> Tensor:
    """Make every gradient the sum over all processes; returns the sum of the losses.

    A parameter that has a gradient in no process keeps none, and so is left alone by the optimizer.
    """
    if count() == 1:
        return loss
    candidates = [p for p in parameters if p.requires_grad]
    has = summed(*(float(p.grad is not None) for p in candidates))
    used = [p for p, n in zip(candidates, has, strict=True) if n]
    for p in used:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad.to_dense() if p.grad.is_sparse else p.grad
    loss = loss.detach().double()  # of one type, also where a process has no units
    with connected():
        dist.all_reduce(loss)
        for bucket in buckets([p.grad for p in used]):
            flat = torch.cat([g.reshape(-1) for g in bucket])
            dist.all_reduce(flat)
            for g, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                g.copy_(total.view_as(g))
    return loss


def buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype together, up to BUCKET elements."""
    bucket = []
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or sum(t.numel() for t in bucket) + tensor.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def check_same(digest: Callable[[], list[int]]) -> None:
    """digest: gives that of the weights. Raises AssertionError where another process has others."""
    if count() > 1:
        sums = torch.tensor(digest())
        low, high = sums.clone(), sums.clone()
        with connected():
            dist.all_reduce(low, dist.ReduceOp.MIN)
            dist.all_reduce(high, dist.ReduceOp.MAX)
        assert torch.equal(low, high), "the processes have come to different weights"


def buffers_of_first(model: nn.Module) -> None:
    """Give every process the buffers of the first: the statistics of BatchNorms that train."""
    if count() > 1:
        with connected():
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


# ---- scoring ----


def my_units(rows: np.ndarray) -> np.ndarray:
    """The units that this process scores: all of every N-th row. rows: (units) the number of the row of each unit."""
    return np.flatnonzero(rows % count() == rank())


def summed_arrays(*arrays: np.ndarray) -> list[np.ndarray]:
    """Of each float64 array the sum over all processes."""
    if count() > 1:
        with connected():
            for array in arrays:
                dist.all_reduce(torch.from_numpy(array))
    return list(arrays)


def merge(meter, data: Data) -> None:
    """Make the meter of the first process that of all rows. data: the split, to which meters refer and which is not sent."""
    if count() == 1:
        return
    packed = io.BytesIO()
    Packing(packed).dump(meter)
    parts = [None] * count() if rank() == 0 else None
    with connected():
        dist.gather_object(packed.getvalue(), parts)
    for part in (parts or [])[1:]:
        meter.merge(Unpacking(io.BytesIO(part), data).load())


class Packing(pickle.Pickler):
    def persistent_id(self, value):
        return "data" if isinstance(value, Data) else None


class Unpacking(pickle.Unpickler):
    def __init__(self, file, data: Data):
        super().__init__(file)
        self.data = data

    def persistent_load(self, name: str) -> Data:
        return self.data


def say_processes() -> str:
    """Beside the device, where there are several."""
    return f", {count()} processes" if count() > 1 else ""
