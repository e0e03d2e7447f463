"""What `python -m minift.trace` shows: one batch through a model, each stop printed.

    row -> tokens or pixels -> stages -> head -> loss -> gradients -> one update

Model, data and optimizer are made by minift/setup.py, and the update is `step` of minift/training.py, both as train.py does it; the
stops are seen by hooks. Nothing is saved. The update has the peak learning rate, as the first one of a schedule with warm-up is 0.
Proved by tests/test_trace.py: the figures are those of autograd and of the weights before and after, for every task and method.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from minift import setup
from minift.data.batching import Batch
from minift.data.examples import Examples
from minift.data.splits import read_splits
from minift.errors import UserError
from minift.methods.surgery import find, plain, plain_name
from minift.models.bert import tokens_of
from minift.optim.groups import switch
from minift.optim.precision import LossScaler
from minift.optim.rows import numbers
from minift.options import layout_of
from minift.printing import beside
from minift.runs import Run, base_of, fingerprints
from minift.source import relative_change
from minift.tables import counted, table
from minift.training import Progress, Step, seed_dropout, step

TOKENS = 40  # that are shown
KEYS = 4  # of the tokens that are seen most
MOVED = 6  # parameters that have moved most


@dataclass
class Seen:
    """What hooks see of one step."""

    stops: list[tuple[str, str, Tensor]] = field(default_factory=list)  # (stage, what, its values)
    weights: dict[str, Tensor] = field(default_factory=dict)  # layer -> (H, S, K) softmax(Q K^T / sqrt(d)) of the first unit
    gradients: dict[str, float] = field(default_factory=dict)  # parameter -> norm, before clipping

    @property
    def whole(self) -> bool:
        """Whether the head has run: what comes then is computed again, for checkpointed activations."""
        return bool(self.stops) and self.stops[-1][0] == "head"


@dataclass
class Traced:
    """The parts of a run, its first batch, and what a step has done with it."""

    training: setup.Setup
    options: object
    tokenizer: object | None
    examples: Examples
    batch: Batch
    seen: Seen
    before: dict[str, Tensor]  # every parameter before the step
    taken: Step
    after: float  # the loss of the same batch after the update, with the same dropout


def trace(given, run: Path | None = None, record: dict | None = None) -> Traced:
    """A step on the first training batch.

    given: the flags of train.py. run: whose weights the model has; None: those at the start of training. record: its config.json.
    """
    given = replace(given, compile=False)  # what is watched happens inside of the stages
    start = setup.start(given)
    options, _ = setup.resolve(given, start, Path("nowhere"))  # nothing is saved
    parts = read_splits(options, start.task, layout_of(options, start.task.LAYOUT))
    if run is not None and (record["base"] != base_of(start) or record["data"] != fingerprints(options, parts)):
        raise UserError(f"{run}: the data or the checkpoint that it has started from has changed")
    task = start.task.learn(parts["train"], options)
    data = setup.prepare(options, task, {"train": parts["train"]}, start.checkpoint)["train"]
    options, _, steps_per_epoch = setup.choose_epochs(options, data)
    training = setup.build(options, given, start, task, data, steps_per_epoch)
    options, _ = setup.with_precision(options, training)
    for penalty in training.penalties:
        penalty.begin(None)
    if run is not None:
        Run(run, start.checkpoint).restore(training.model)
    with closing(data.batches([data.order(options.batch_size, options.seed, 0)[0]], start.device, 0)) as stream:
        batch = next(stream)
    model = training.model
    model.train()
    if training.unfreezing:
        stages = list(dict.fromkeys(group.stage for group in training.optimizer.groups))
        switch(model, training.optimizer.groups, training.unfreezing(stages, 0, 0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scaler = LossScaler() if training.precision.dtype == torch.float16 else None
    with watched(model, 1.0 if scaler is None else scaler.S) as seen:
        taken = step(training, [batch], 1.0, options, scaler, Progress())
    seed_dropout(start.device, options.seed, 0, 0, 0)  # as in the step
    with torch.no_grad(), training.precision:
        after = task.loss(model(batch)[1], batch).sum().item() / max(taken.count, 1)
    return Traced(training, options, start.checkpoint.tokenizer, parts["train"], batch, seen, before, taken, after)


@contextmanager
def watched(model: nn.Module, scale: float) -> Iterator[Seen]:
    """Hooks on every stage, on `attend` of every layer and on the gradients. scale: by which the loss is multiplied."""
    seen, hooks = Seen(), []

    def stop(stage: str):
        def note(module, inputs, output) -> None:
            if seen.whole:
                return
            if stage == "head":
                leaves = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
                seen.stops.extend(("head", "outputs", x.detach()) for x in leaves)
                return
            for name, x in output._asdict().items():
                if isinstance(x, Tensor) and x is not getattr(inputs[0], name) and x.is_floating_point():
                    seen.stops.append((stage, name, x.detach()))

        return note

    def attention(layer: str):
        def note(module, inputs) -> None:
            if not seen.whole:
                seen.weights[layer] = attention_of(*inputs)

        return note

    def gradient(name: str):
        def note(parameter) -> None:
            seen.gradients[name] = torch.linalg.vector_norm(numbers(parameter).float()).item() / scale

        return note

    for stage, modules in model.parts.items():
        hooks += [module.register_forward_hook(stop(stage)) for module in modules]
    if "attend" in model.body.SITES:
        for name, module in find(model.body, "attend").items():
            hooks.append(plain(module).register_forward_pre_hook(attention(name.rpartition(".attention")[0])))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            hooks.append(parameter.register_post_accumulate_grad_hook(gradient(name)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def attention_of(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """(H, S, K) what each token of the first unit sees of each: softmax(Q K^T / sqrt(d)), before dropout. The inputs are those of
    `attend`; K is S and the positions that a method adds.
    """
    scores = q[0].detach().float() @ k[0].detach().float().transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[0], -torch.inf)  # (K), or (1, S, K)
    return scores.softmax(-1).nan_to_num()


# ---- what is printed ----


def show(traced: Traced) -> None:
    for title, lines in (
        ("row", rows(traced)),
        ("batch", inputs(traced)),
        ("tokens of the first", tokens(traced)),
        ("stages", stops(traced)),
        ("what is attended", attended(traced)),
        ("loss", loss(traced)),
        ("gradients and the update", by_stage(traced)),
        ("parameters that have moved most", most_moved(traced)),
    ):
        if lines:
            print(f"==== {title}\n{lines}\n")


def rows(traced: Traced) -> str:
    """The first row of the batch, as the file has it."""
    row, batch = int(traced.batch.rows[0]), traced.batch
    content = traced.examples.take([row]).inputs()[0]
    shown = (" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in content.values())
    others = f"the first of a batch of {counted(len(batch.rows), 'unit')} of {counted(len({*batch.rows.tolist()}), 'row')}"
    text = beside(f"{traced.examples.where(row)}  ", " | ".join(shown))
    return f"{text}\n{others}"


def inputs(traced: Traced) -> str:
    named = [("input", x) for x in traced.batch.inputs] + [("target", x) for x in traced.batch.targets]
    lines = [[what, as_shape(x), str(x.dtype).removeprefix("torch."), *figures(x)] for what, x in named if x is not None]
    return table(["tensor", "shape", "type", "mean", "deviation"], lines)


def tokens(traced: Traced) -> str:
    """Each token of the first unit, its id and what the loss expects there."""
    batch, expected = traced.batch, traced.training.task.expected(traced.batch, 0, traced.tokenizer)
    lines = [f"expected: {expected[None]}"] if None in expected else []
    if traced.tokenizer is not None:
        ids, real = batch.inputs[0][0].tolist(), real_tokens(batch).nonzero().flatten().tolist()
        shown = [[at, traced.tokenizer.id_to_token(ids[at]) or "", str(ids[at]), expected.get(at, "")] for at in real]
        lines.append(table(["at", "token", "id", "expected"], shown[:TOKENS]))
        lines += [f"... {len(shown) - TOKENS} more"] if len(shown) > TOKENS else []
        lines += [f"{len(ids) - len(real)} padding positions follow, to which no token attends"] if len(real) < len(ids) else []
    return "\n".join(lines)


def real_tokens(batch: Batch) -> Tensor:
    """(S) of the first unit, which columns some token sees: all but padding."""
    tokens, mask = batch.inputs[:2]
    return torch.ones(tokens.shape[1], dtype=torch.bool) if mask is None else tokens_of(mask)[0]


def stops(traced: Traced) -> str:
    model, lines = traced.training.model, []
    for stage, what, x in traced.seen.stops:
        training = model.parts[stage][0].training
        lines.append([stage, what, as_shape(x), *figures(x), "training" if training else "frozen"])
    return table(["stage", "gives", "shape", "mean", "deviation", "mode"], lines)


def attended(traced: Traced) -> str:
    """Of the first unit: what the token that is pooled sees most in each layer, by the mean over the heads."""
    if not traced.seen.weights:
        return ""
    ids, length = traced.batch.inputs[0][0].tolist(), int(real_tokens(traced.batch).sum())
    reader = length - 1 if traced.training.model.body.CAUSAL else 0
    lines = []
    for layer, weights in traced.seen.weights.items():
        queries, keys = weights.shape[1:]
        names = [f"(virtual {i})" for i in range(keys - len(ids))] + [traced.tokenizer.id_to_token(i) or "" for i in ids]
        of = weights.mean(0)[reader + queries - len(ids)]
        top = of.topk(min(KEYS, keys))
        seen = ", ".join(f"{names[i]} {p:.3f}" for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True))
        lines.append([layer, f"{int((of > 0).sum())} of {keys}", seen])
    who = traced.tokenizer.id_to_token(ids[reader])
    return table(["layer", f"{who} sees", "most"], lines)


def loss(traced: Traced) -> str:
    taken = traced.taken
    units = ", ".join(f"{n:g}" for n in traced.batch.counts[:8].tolist()) + (", ..." if len(traced.batch.counts) > 8 else "")
    if not taken.updated:
        return f"nothing counts in this batch, or its gradients overflow: no update ({units})"
    return (
        f"{taken.loss.item():.6g}: the sum over the batch divided by {taken.count:g}, the sum of what each unit counts ({units})\n"
        f"norm of all gradients {taken.norm.item():.6g}, clipped at --clip {traced.options.clip:g}\n"
        f"{traced.after:.6g} on the same batch after an update with the peak learning rate, without penalties"
    )


def by_stage(traced: Traced) -> str:
    """Of every stage: what trains, the norm of its gradient, how many parameters have moved, and how far."""
    model, lines = traced.training.model, []
    stage_of = {p: group for group in traced.training.optimizer.groups for p in group.parameters}
    names = {p: name for name, p in model.named_parameters()}
    for stage, modules in model.parts.items():
        parameters = list(dict.fromkeys(p for module in modules for p in module.parameters()))
        on = [p for p in parameters if p.requires_grad]
        norm = sum(traced.seen.gradients.get(names[p], 0.0) ** 2 for p in on) ** 0.5
        moved = [p for p in parameters if not torch.equal(p.detach(), traced.before[names[p]])]
        lr = " / ".join(f"{lr:.3g}" for lr in sorted({stage_of[p].lr for p in on}))
        lines.append([stage, len(parameters), len(on), len(moved), lr, f"{norm:.3e}", f"{distance(traced, parameters, names):.3e}"])
    header = ["stage", "tensors", "trainable", "moved", "learning rate", "gradient", "move / length"]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert all(torch.equal(p, traced.before[names[p]]) for p in frozen), "a frozen parameter has moved"
    return f"{table(header, lines)}\nfrozen: {counted(sum(p.numel() for p in frozen), 'parameter')}, none has moved"


def distance(traced: Traced, parameters: list[Tensor], names: dict[Tensor, str]) -> float:
    """||theta - theta_0|| / ||theta_0|| of these parameters together."""
    return relative_change((p, traced.before[names[p]]) for p in parameters) or 0.0


def most_moved(traced: Traced) -> str:
    lines = []
    for name, p in traced.training.model.named_parameters():
        old = traced.before[name].float()
        if p.requires_grad and (largest := (p.detach().float() - old).abs().max().item() if p.numel() else 0.0):
            norm = traced.seen.gradients.get(name, 0.0)
            lines.append((largest, [plain_name(name), as_shape(p), f"{norm:.3e}", f"{largest:.3e}", f"{old.abs().max():.3e}"]))
    lines = [line for _, line in sorted(lines, key=lambda one: -one[0])[:MOVED]]
    return table(["parameter", "shape", "gradient", "largest move", "largest before"], lines) if lines else ""


def figures(x: Tensor) -> tuple[str, str]:
    """Mean and deviation of the finite values; of integers none."""
    values = x.detach().float()[x.isfinite()] if x.is_floating_point() else torch.empty(0)
    return (f"{values.mean():.4f}", f"{values.std(correction=0):.4f}") if len(values) else ("", "")


def as_shape(x: Tensor) -> str:
    return "x".join(map(str, x.shape)) or "scalar"
