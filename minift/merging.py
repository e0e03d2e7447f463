"""A run whose method can be merged, as a run with a plain model: convert.py RUN --to minift, hf or torchvision.

What is merged is said in `merged` of the method's file, how in methods/surgery.py. Proved by tests/test_deltas.py.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from minift.data.samples import REVIEWS
from minift.errors import UserError
from minift.finetuned import FineTuned, assemble
from minift.methods.surgery import merge, plain, unmerge
from minift.pretrained import Checkpoint, find, read, sha256
from minift.runs import read_record
from minift.training import outputs_by_row

ROWS = 64


@dataclass
class Report:
    """What merging has changed."""

    weights: dict[str, float]  # module -> largest change of one of its weights
    logits: float | None  # largest change of a logit
    rows: str  # on which rows, or why on none


def merge_run(checkpoint: Checkpoint) -> tuple[Checkpoint, Report]:
    """(the same run with a plain model, what that has changed). Raises UserError where the method cannot be merged.

    The logits are compared in float32, on 64 rows of the training file, drawn with a fixed seed, where that file is still there.
    """
    if checkpoint.settings is None:
        raise UserError("config.json has no settings, which say how the run reads its data; merge where it was made")
    tuned = assemble(replace(checkpoint, settings=checkpoint.settings | {"precision": "float32"}), "cpu")
    body = tuned.model.body
    try:
        wrapped = merge(body)
    except ValueError as error:
        raise UserError(f"{checkpoint.method}: {error}") from None
    state = body.state_dict()
    weights = {name: change(body.get_submodule(name), plain(wrapper)) for name, wrapper in wrapped.items()}
    rows, said = training_rows(tuned)
    if rows is not None:
        merged = outputs(tuned, rows)
        unmerge(body, wrapped)
        largest = (outputs(tuned, rows) - merged).abs().max().item()
    whole = replace(checkpoint, tensors=state, grafts={}, origin=None, method=None, delta=False)
    return whole, Report(weights, None if rows is None else largest, said)


def started_from(place: Path) -> Checkpoint:
    """The checkpoint that a run has started from. place: the run's model/."""
    file = place.parent / "config.json"
    record = read_record(file)
    if record["base"] is None:
        raise UserError(f"{file}: the run has started from random weights, so there is nothing to interpolate with")
    base = find(record["flags"]["model"])
    if sha256(base / "model.safetensors") != record["base"]["weights"]:
        raise UserError(f"{base}: its weights are not those that the run of {file} has started from")
    return read(base)


def interpolate(run: Checkpoint, base: Checkpoint, share: float) -> Checkpoint:
    """WiSE-FT: the run, a plain model, part of the way back to the checkpoint that it has started from,

        theta <- (1 - share) theta_0 + share theta

    for every weight and statistic of the body that the checkpoint has, computed in float32. What it does not have, as the head,
    stays as the run has trained it; the paper (Wortsman et al. 2022, arXiv:2109.01903, section 3) interpolates from a zero-shot
    classifier, whose head exists before fine-tuning. share: from 0 to 1. Proved by test_a_run_part_of_the_way_back.
    """
    tensors = dict(run.tensors)
    for name, theta in run.tensors.items():
        if name in base.tensors and theta.is_floating_point():
            tensors[name] = base.tensors[name].float().lerp(theta.float(), share).to(theta.dtype)
    return replace(run, tensors=tensors)


def change(merged: nn.Module, layer: nn.Module) -> float:
    """The largest change of a weight or a bias."""
    return max((p - q).abs().max().item() for p, q in zip(merged.parameters(), layer.parameters(), strict=True))


def outputs(tuned: FineTuned, rows) -> Tensor:
    """All outputs of the head on these rows, as one vector."""
    made = outputs_by_row(tuned.model, tuned.prepare(rows), tuned.settings["batch_size"], tuned.precision)
    return torch.cat([x.flatten() for _, units in made for x in tree_leaves(units)])


def training_rows(tuned: FineTuned) -> tuple[object | None, str]:
    """(64 rows of the run's training file, or None; what they are)"""
    path = (tuned.checkpoint.recipe or {}).get("train") or (REVIEWS if tuned.checkpoint.recipe else None)
    if path is None:
        return None, "the run does not say what it was trained on"
    try:
        rows = tuned.task.read(str(path), tuned.layout)
    except (UserError, OSError) as error:
        return None, f"the training rows cannot be read: {error}"
    drawn = np.sort(np.random.default_rng(0).permutation(len(rows))[:ROWS])
    return rows.take(drawn), f"{len(drawn)} rows of {Path(path).name}"
