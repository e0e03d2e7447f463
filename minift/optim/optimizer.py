"""What all optimisers share: groups, the walk over their parameters, state per parameter, and blocks that stay in the cache.

Proved by tests/reference/test_optim.py, for both update rules.
"""

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from minift.optim.groups import Group
from minift.optim.rows import Rows, numbers

BLOCK = 1 << 17  # elements: four blocks of float32 (theta, g, m, v) and one in between about fill a second-level cache
LARGEST = 1e30  # of a learning rate and a weight decay: their products with other options stay within float32
KERNEL_DTYPES = (torch.float32, torch.float64)
MASKED = {"cuda"}  # devices that run behind the host: to ask them whether an update is to be made would stop both


class Optimizer:
    """An update rule is a subclass: `moments`, the names of the tensors that it remembers of each parameter, and `update`. Where
    torch has a kernel of it, `kernel` calls it for many parameters at once, on the devices of `kernel_on`.

    A parameter without a gradient is left alone: no decay, no state, and its own step count stands still, so that one that is
    unfrozen late starts at 1. On a CPU a parameter is updated block by block, so that the passes over it run in the cache.

    groups: from `make_groups`. state: parameter -> its step count t and its moments, which start as zeros. rows: of a table whose
    gradient is of some rows, those that its moments are of (minift/optim/rows.py).
    Raises ValueError where a learning rate or a weight decay is negative, above 1e30 or not a number.
    """

    moments: tuple[str, ...]
    kernel_on: tuple[str, ...] = ()
    idle_rows_decay = False  # whether theta <- theta - eta lr lambda theta is the update of a row without a gradient so far

    def __init__(self, groups: list[Group]):
        for group in groups:
            for option, value in (("learning rate", group.lr), ("weight decay", group.weight_decay)):
                if not 0 <= value <= LARGEST:
                    raise ValueError(f"{option} {value} (stage {group.stage}): a number from 0 to {LARGEST:.0e} is expected")
        self.groups = groups
        self.state: dict[Tensor, tuple] = {}
        self.rows: dict[Tensor, Rows] = {}
        self.verdict: Verdict | None = None  # on the last update, where it was masked

    @torch.no_grad()
    def step(self, factor: float = 1.0, finite: Tensor | None = None) -> None:
        """One update of every parameter that has a gradient; factor: eta, the schedule's.

        finite: a bool scalar on the device of the parameters, `norm.isfinite()` of the norm that `clip_gradients` returns. Where
        it is False the update is left out: parameters, moments and step counts keep every bit. None: the update is made.

        On CUDA nothing waits for that answer: the update is masked on the device, and the host takes the step counts back in the
        next call, before it uses them.
        """
        self.settle()
        masked = finite is not None and finite.device.type in MASKED
        if finite is not None and not masked and not finite:
            return
        updated, due = [], defaultdict(list)
        for group in self.groups:
            for theta in group.parameters:
                if theta.grad is None:
                    continue
                if theta.grad.is_sparse and self.idle_rows_decay and (theta in self.rows or theta not in self.state):
                    self.step_rows(factor * group.lr, group.weight_decay, theta)
                    continue
                t, *moments = self.dense_state(theta)
                self.state[theta] = (t + 1, *moments)
                updated.append(theta)
                g = theta.grad.to_dense() if theta.grad.is_sparse else theta.grad
                due[group.lr, group.weight_decay].append((t + 1, theta, g, *moments))
        for (lr, weight_decay), tensors in due.items():
            self.update_all(factor * lr, weight_decay, tensors, finite if masked else None)
        if masked:
            self.verdict = Verdict(finite, updated)

    def step_rows(self, lr: float, weight_decay: float, theta: Tensor) -> None:
        """An update of a table with a gradient of some rows, on a CPU: all rows decay, and those that a gradient has come to are
        updated together. lr: eta times the group's learning rate.
        """
        if theta not in self.rows:
            self.rows[theta] = Rows(theta)
        rows, values = self.rows[theta], numbers(theta)
        which = theta.grad.indices()[0]
        more = rows.add(which)
        t, *moments = self.state.get(theta) or (0, *(theta.new_zeros(0, *theta.shape[1:]) for _ in self.moments))
        moments = [torch.cat([m, m.new_zeros(more, *m.shape[1:])]) if more else m for m in moments]  # (n, D)
        self.state[theta] = (t + 1, *moments)
        theta.mul_(1 - lr * weight_decay)
        part = theta[rows.which]  # (n, D)
        self.update_all(lr, 0.0, [(t + 1, part, rows.spread(which, values), *moments)], None)
        theta[rows.which] = part

    def dense_state(self, theta: Tensor) -> tuple:
        """Its step count and its moments, from now on of all rows."""
        if theta not in self.state:
            return (0, *(torch.zeros_like(theta) for _ in self.moments))
        if (rows := self.rows.pop(theta, None)) is None:
            return self.state[theta]
        t, *moments = self.state[theta]
        return (t, *(torch.zeros_like(theta).index_copy_(0, rows.which, m) for m in moments))

    def update_all(self, lr: float, weight_decay: float, due: list[tuple], finite: Tensor | None) -> None:
        """due: (t, theta, g, moments ...) of parameters with one learning rate. finite: if given, False keeps every bit."""
        together, alone = defaultdict(list), []
        for t, *tensors in due:
            device, dtype = tensors[0].device, tensors[0].dtype
            if device.type not in self.kernel_on or dtype not in KERNEL_DTYPES:
                same = None
            else:
                same = tensors if all(x.is_contiguous() for x in tensors) else in_one_piece(*tensors)
            if same:
                together[t, device, dtype].append(same)
            else:
                alone.append((t, *tensors))
        for (t, _, _), tensors in together.items():
            self.kernel(t, lr, weight_decay, [list(column) for column in zip(*tensors, strict=True)], finite)
        for t, *tensors in alone:
            for part, g, *kept in blocks(*tensors):
                before = [] if finite is None else [x.clone() for x in (part, *kept)]
                self.update(t, lr, weight_decay, part, g, *kept)
                for x, old in zip((part, *kept) if before else (), before, strict=True):
                    torch.where(finite, x, old, out=x)

    def update(self, t: int, lr: float, weight_decay: float, theta: Tensor, g: Tensor, *moments: Tensor) -> None:
        """The t-th update of theta, or of a block of it, in place; lr: eta times the group's learning rate. g is not changed."""
        raise NotImplementedError

    def kernel(self, t: int, lr: float, weight_decay: float, tensors: list[list[Tensor]], finite: Tensor | None) -> None:
        """`update` of many parameters, by torch. tensors: all theta, all g, and all of each moment; each contiguous."""
        raise NotImplementedError

    def settle(self) -> None:
        """If the last update was masked out, take back its step counts."""
        verdict, self.verdict = self.verdict, None
        if verdict is None or verdict.made():
            return
        for theta in verdict.updated:
            t, *moments = self.state[theta]
            self.state[theta] = (t - 1, *moments)
            if t == 1:
                del self.state[theta]

    def zero_grad(self) -> None:
        for group in self.groups:
            for theta in group.parameters:
                theta.grad = None

    # ---- to go on later ----

    def named_parameters(self) -> dict[str, Tensor]:
        names = [name for group in self.groups for name in group.names]
        parameters = [theta for group in self.groups for theta in group.parameters]
        if len(names) != len(parameters) or len(names) != len(set(names)):
            raise ValueError(f"{len(parameters)} parameters have {len(set(names))} different names; each needs one of its own")
        return dict(zip(names, parameters, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """For every parameter with a state `NAME/t`, an int64 scalar, and `NAME/m` and so on, one for each of `moments`; and
        `NAME/rows` where the moments are of these rows of the parameter alone.

        The tensors are the optimiser's own: the next step changes them.
        """
        self.settle()
        tensors = {}
        for name, theta in self.named_parameters().items():
            if theta in self.state:
                t, *moments = self.state[theta]
                tensors |= {
                    f"{name}/t": torch.tensor(t),
                    **dict(zip(map(f"{name}/{{}}".format, self.moments), moments, strict=True)),
                    **({f"{name}/rows": self.rows[theta].which} if theta in self.rows else {}),
                }
        return tensors

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Go on from `state_dict`: with the same parameters and gradients every further step gives the same bits. Copies.

        A parameter of which there is nothing has no state yet. Raises ValueError, and changes nothing, where a name, a shape or a
        dtype is not one that this optimiser gives.
        """
        parameters = self.named_parameters()
        parts = ("t", *self.moments)
        known = {f"{name}/{part}" for name in parameters for part in (*parts, *["rows"] * self.idle_rows_decay)}
        unknown = sorted(tensors.keys() - known)
        if unknown:
            raise ValueError(f"{len(unknown)} tensors belong to no parameter of this optimiser, the first is {unknown[0]}")
        state, rows_of = {}, {}
        for name, theta in parameters.items():
            found = {part: tensors[f"{name}/{part}"] for part in parts if f"{name}/{part}" in tensors}
            rows = tensors.get(f"{name}/rows")
            if not found and rows is None:
                continue
            if missing := [part for part in parts if part not in found]:
                raise ValueError(f"{name}/{missing[0]} is missing beside {name}/{next(iter(found), 'rows')}")
            t = found.pop("t")
            if t.dtype != torch.int64 or t.ndim or t < 1:
                raise ValueError(f"{name}/t is {t.tolist()}: a number of steps, 1 or more, is expected")
            expected = theta
            if rows is not None:
                check_rows(f"{name}/rows", rows, theta)
                rows_of[theta] = Rows(theta, rows.to(theta.device, copy=True))
                expected = theta[:1].expand(len(rows), *theta.shape[1:])
            for part, moment in found.items():
                if (moment.shape, moment.dtype) != (expected.shape, theta.dtype):
                    there, here = ((tuple(x.shape), x.dtype) for x in (moment, expected))
                    raise ValueError(f"{name}/{part} is {there[0]} {there[1]}, the parameter {here[0]} {here[1]}")
            state[theta] = (t.item(), *(torch.empty_like(expected).copy_(moment) for moment in found.values()))
        self.state, self.rows, self.verdict = state, rows_of, None


class Verdict:
    """Whether a masked update was made, copied to the host behind the host's back.

    By the next step the answer has long arrived, as a forward and a backward pass lie in between: to read it then waits for what
    the device did before them, not for all that it still has to do.
    """

    def __init__(self, finite: Tensor, updated: list[Tensor]):
        self.updated = updated
        self.answer = torch.empty((), dtype=torch.bool, pin_memory=finite.is_cuda)
        self.answer.copy_(finite, non_blocking=True)
        self.arrived = torch.cuda.Event() if finite.is_cuda else None
        if self.arrived:
            self.arrived.record()

    def made(self) -> bool:
        if self.arrived:
            self.arrived.synchronize()
        return bool(self.answer)


def check_rows(name: str, rows: Tensor, theta: Tensor) -> None:
    if not theta.ndim or rows.dtype != torch.int64 or rows.ndim != 1:
        raise ValueError(f"{name} is {tuple(rows.shape)} {rows.dtype}: the numbers of rows of the parameter are expected")
    if len(rows) and not (rows.min() >= 0 and rows.max() < len(theta) and len(rows.unique()) == len(rows)):
        raise ValueError(f"{name}: different numbers from 0 to {len(theta) - 1} are expected")


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, together: in views of BLOCK elements where all lie in memory in one piece and one order of their axes,
    as contiguous and channels_last tensors do, and on a CPU; else, and where they are no larger, as they are.
    """
    on_cpu = tensors[0].device.type == "cpu"
    if not on_cpu or tensors[0].numel() <= BLOCK or (flat := in_one_piece(*tensors)) is None:
        return iter([tensors])
    return zip(*(x.split(BLOCK) for x in flat), strict=True)


def in_one_piece(*tensors: Tensor) -> list[Tensor] | None:
    """Tensors of one shape, viewed with one axis; None where one is not in one piece in memory, in the order of the first."""
    order = sorted(range(tensors[0].dim()), key=tensors[0].stride, reverse=True)
    flat = [x.permute(order) for x in tensors]
    return [x.view(-1) for x in flat] if all(x.is_contiguous() for x in flat) else None
