"""What a run of another library lacks to be one of minift's: its base, found among the converted models, labels and settings.

minift.json   beside the library's own files, which pass it over: labels, sha256 and name of the base, how the run read its data
"""

from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from minift.errors import UserError, look_up
from minift.formats.huggingface import FAMILIES, inside, read_bin
from minift.pretrained import (
    PRECISIONS,
    Checkpoint,
    check_values,
    find,
    of_today,
    read,
    read_object,
    read_tensors,
    sha256,
    write_json,
)
from minift.tasks import TASKS as ALL_TASKS
from minift.tasks.task import of

BESIDE = "minift.json"
TASKS = {"bert": "text-classification", "resnet": "image-classification"}


def check_architecture(architecture: str) -> None:
    """Raises UserError for one whose names in the two libraries are not known here."""
    if architecture not in TASKS:
        known = " and ".join(TASKS)
        raise UserError(f"{architecture}: directories of peft and of the adapters library are read and written of {known}")


# ---- out ----


def write_beside(directory: Path, run: Checkpoint) -> None:
    said = {"task": run.task, "settings": run.settings, "base": run.base, "base_name": run.base_name}
    write_json(directory / BESIDE, said)


def source_of_base(run: Checkpoint) -> str | None:
    """By which transformers knows the base; None where that is itself a run."""
    return run.origin.source if run.origin.task is None else None


# ---- in ----


def read_config(path: Path) -> dict:
    """A JSON object of one of the two libraries."""
    if not path.is_file():
        raise UserError(f"{path}: no such file, so this is no directory of peft or of the adapters library")
    return read_object(inside(path.parent, path.name))


def read_either(directory: Path, files: tuple[str, ...]) -> tuple[Path, dict[str, Tensor]]:
    """(path, tensors) of the safetensors file or of the .bin file: the first that is there."""
    for name, read_one in zip(files, (read_tensors, read_checked_bin), strict=True):
        if (path := inside(directory, name)).is_file():
            return path, read_one(path)
    raise UserError(f"{directory}: there is no {' and no '.join(files)}")


def read_checked_bin(path: Path) -> dict[str, Tensor]:
    tensors = read_bin(path)
    check_values(path, tensors)
    return tensors


def read_beside(directory: Path) -> dict:
    """minift.json; empty where there is none."""
    if not (directory / BESIDE).is_file():
        return {}
    beside = read_config(directory / BESIDE)
    if "labels" in beside:  # as an older minift wrote it
        name = TASKS["bert" if "max_length" in (beside.get("settings") or {}) else "resnet"]
        beside = of_today(beside | {"task": {"name": name, "labels": beside.pop("labels"), "pool": None}})
    return beside


def find_base(directory: Path, name: str | None, recorded: object) -> tuple[Checkpoint, str]:
    """(the base, whose own field `base` is its sha256, the name by which it is found again)

    name: what the user has said; recorded: what the library has, for where neither the user nor minift.json says it.
    """
    beside = read_beside(directory)
    name = name or beside.get("base_name") or recorded
    if not name or not isinstance(name, str):
        raise UserError(f"{directory}: its base is recorded as {name!r}; say with --base which converted model it belongs to")
    try:
        place = find(name)
        base = read(place)
    except UserError as error:
        raise UserError(f"{directory}: its base: {error}; another one is given with --base") from None
    if base.grafts:
        raise UserError(f"{place}: a run of {base.method}, whose layers are no longer plain; name a plain base with --base")
    if FAMILIES[base.architecture].pool == "cls" and base.own_pool is None:
        raise UserError(f"{directory}: the head reads BERT's pooler, and {place} has none; name another base with --base")
    check_architecture(base.architecture)
    base = replace(base, base=sha256(place / "model.safetensors"))
    if beside.get("base", base.base) != base.base:
        raise UserError(
            f"{directory / BESIDE}: the base has sha256 {str(beside['base'])[:12]}..., {name} has {base.base[:12]}...; name the "
            "right one with --base"
        )
    return base, str(Path(name).resolve()) if Path(name).is_dir() else name


def over(
    base: Checkpoint,
    name: str,
    method: str,
    grafts: dict[str, Tensor],
    head: dict[str, Tensor],
    directory: Path,
    labels: list[str] | None = None,
    taken: int = 0,
) -> Checkpoint:
    """The run, as pretrained.read gives one. base, name: from find_base.

    labels: what the library records, for where minift.json says none. taken: positions that the method takes.
    """
    pool = FAMILIES[base.architecture].pool
    plain = base.empty_body(pool).state_dict().keys()
    return replace(
        base,
        tensors={ours: tensor for ours, tensor in base.tensors.items() if ours in plain},
        base_name=name,
        method=method,
        delta=True,
        recipe=None,
        task=task_of(directory, base, len(head["weight"]), labels, taken),
        settings=settings_of(directory, base),
        head=head,
        grafts=grafts,
        origin=base,
    )


def labels_of(directory: Path, count: int, recorded: list[str] | None) -> list[str]:
    beside = read_beside(directory)
    task = beside.get("task")
    if not isinstance(task, dict | None):
        raise UserError(
            f"{directory / BESIDE}: task {str(task)[:60]} is none of a run's; delete the file to go on without its labels"
        )
    labels = (task or {}).get("labels") or recorded or [f"LABEL_{i}" for i in range(count)]
    texts = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not texts or len({*labels}) != count or len(labels) != count:
        where = directory / BESIDE if task else directory
        raise UserError(f"{where}: labels {str(labels)[:60]} are no {count} different names, one for each row of the head")
    return labels


def task_of(directory: Path, base: Checkpoint, classes: int, recorded: list[str] | None, taken: int) -> dict:
    """The task as the run had it, or as usual. classes: rows of the head."""
    file, said = directory / BESIDE, read_beside(directory).get("task", {})
    task = {
        "name": TASKS[base.architecture],
        "labels": labels_of(directory, classes, recorded),
        "pool": FAMILIES[base.architecture].pool,
    }
    if base.tokenizer is not None:
        task |= {"max_length": min(128, base.config["max_position_embeddings"] - taken), "pairs": False}
    task |= {name: value for name, value in said.items() if name != "pool"}
    try:
        of(task)
    except (UserError, ValueError) as error:
        raise UserError(f"{file}: {error}; delete the file to go on without its labels") from None
    return task


def settings_of(directory: Path, base: Checkpoint) -> dict:
    """How data is read and batched: as the run did, or as usual."""
    kind = look_up(ALL_TASKS, TASKS[base.architecture], "task").LAYOUT
    layout = {name: value for name, value in asdict(kind()).items() if name != "workers"}
    usual = {"batch_size": 32, "precision": "float32", "frozen": 0, "layout": layout}
    said, file = read_beside(directory).get("settings", {}), directory / BESIDE
    if not isinstance(said, dict) or not all(type(value) is type(usual.get(field)) for field, value in said.items()):
        raise UserError(f"{file}: settings {str(said)[:60]} are none of a run's; delete the file to go on without its labels")
    if strange := said.get("layout", {}).keys() - layout.keys():
        raise UserError(f"{file}: layout has {min(strange)}, which is none of its flags")
    if said.get("precision", "float32") not in PRECISIONS:
        raise UserError(f"{file}: precision {said['precision']!r} is none of {', '.join(PRECISIONS)}")
    return usual | said
