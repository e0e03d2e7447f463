"""The base of a run that comes from another library: found among the converted models, and put under what was read."""

from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from minift.data.reading import Layout
from minift.errors import UserError
from minift.formats.huggingface import FAMILIES
from minift.pretrained import Checkpoint, find, read, sha256

TASKS = {"bert": "text-classification", "resnet": "image-classification"}


def find_base(file: Path, name: str | None) -> tuple[Checkpoint, str]:
    """(the base, whose own field `base` is its sha256, the name by which it is found again)

    file: what records the name, for messages.
    """
    if not name or not isinstance(name, str):
        raise UserError(f"{file}: its base is recorded as {name!r}; say with --base which converted model it belongs to")
    try:
        place = find(name)
        base = read(place)
    except UserError as error:
        raise UserError(f"{file}: its base: {error}; another one is given with --base") from None
    if base.grafts:
        raise UserError(f"{place}: a run of {base.method}, whose layers are no longer plain; name a plain base with --base")
    if FAMILIES[base.architecture].pool == "cls" and base.own_pool is None:
        raise UserError(f"{file}: the head reads BERT's pooler, and {place} has none; name another base with --base")
    return replace(base, base=sha256(place / "model.safetensors")), str(Path(name).resolve()) if Path(name).is_dir() else name


def over(
    base: Checkpoint, name: str, method: str, grafts: dict[str, Tensor], head: dict[str, Tensor], labels: list[str], settings: dict
) -> Checkpoint:
    """The run, as pretrained.read gives one. base, name: from find_base."""
    pool = FAMILIES[base.architecture].pool
    plain = base.empty_body(pool).state_dict().keys()
    return replace(
        base,
        tensors={ours: tensor for ours, tensor in base.tensors.items() if ours in plain},
        base_name=name,
        method=method,
        delta=True,
        recipe=None,
        task={"name": TASKS[base.architecture], "labels": labels, "pool": pool},
        settings=settings,
        head=head,
        grafts=grafts,
        origin=base,
    )


def usual_settings(base: Checkpoint, taken: int) -> dict:
    """How data is read and batched where nothing is recorded. taken: positions that the method takes."""
    usual = {"batch_size": 32, "precision": "float32", "frozen": 0, "layout": asdict(Layout())}
    if base.tokenizer is None:
        return usual
    return usual | {"max_length": min(128, base.config["max_position_embeddings"] - taken), "pairs": False}
