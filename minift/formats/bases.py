"""What a run of another library lacks to be one of minift's: its base, found among the converted models, labels and settings.

minift.json   beside the library's own files, which pass it over: labels, sha256 and name of the base, how the run read its data
"""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from minift.errors import UserError, is_there, look_up
from minift.formats.heads import HEADS, OUTPUTS, has_head, usual_settings, usual_task
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
from minift.tasks.task import task_from

BESIDE = "minift.json"
TASKS = {"bert": "text-classification", "gpt2": "text-classification", "resnet": "image-classification"}


def check_architecture(architecture: str) -> None:
    """Raises UserError for one whose names in the two libraries are not known here."""
    if architecture not in TASKS:
        known = ", ".join(TASKS)
        raise UserError(f"{architecture}: directories of peft and of the adapters library are read and written of {known}")


# ---- out ----


def write_beside(directory: Path, run: Checkpoint) -> None:
    said = {"task": run.task, "settings": run.settings, "base": run.base, "base_name": run.base_name}
    write_json(directory / BESIDE, said)


def source_of_base(run: Checkpoint) -> str | None:
    """By which transformers knows the base; None where that is a run that minift has trained."""
    trained_here = run.origin.task is not None and (run.origin.recipe is not None or run.origin.base is not None)
    return None if trained_here else run.origin.source


# ---- in ----


def read_config(path: Path) -> dict:
    """A JSON object of one of the two libraries."""
    if not is_there(path):
        raise UserError(f"{path}: no such file, so this is no directory of peft or of the adapters library")
    return read_object(inside(path.parent, path.name))


def read_either(directory: Path, files: tuple[str, ...]) -> tuple[Path, dict[str, Tensor]]:
    """(path, tensors) of the safetensors file or of the .bin file: the first that is there."""
    for name, read_one in zip(files, (read_tensors, read_checked_bin), strict=True):
        if is_there(path := inside(directory, name)):
            return path, read_one(path)
    raise UserError(f"{directory}: there is no {' and no '.join(files)}")


def read_checked_bin(path: Path) -> dict[str, Tensor]:
    tensors = read_bin(path)
    check_values(path, tensors)
    return tensors


def read_beside(directory: Path) -> dict:
    """minift.json; empty where there is none."""
    if not is_there(directory / BESIDE):
        return {}
    beside = read_config(directory / BESIDE)
    if "labels" in beside:  # as an older minift wrote it
        name = TASKS["bert" if "max_length" in (beside.get("settings") or {}) else "resnet"]
        beside = of_today(beside | {"task": {"name": name, "labels": beside.pop("labels"), "pool": None}})
    return beside


def find_base(directory: Path, name: str | None, recorded: object, pooled: bool = True) -> tuple[Checkpoint, str]:
    """(the base, whose own field `base` is its sha256, the name by which it is found again)

    name: what the user has said; recorded: what the library has, for where neither the user nor minift.json says it.
    pooled: the head reads the pooler.
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
    if pooled and FAMILIES[base.architecture].pool == "cls" and base.own_pool is None:
        raise UserError(f"{directory}: the head reads BERT's pooler, and {place} has none; name another base with --base")
    check_architecture(base.architecture)
    tokenizer = place / "tokenizer.json"
    identity = {"base": sha256(place / "model.safetensors"), "base_tokenizer": sha256(tokenizer) if is_there(tokenizer) else None}
    base = replace(base, **identity)
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
    task: str,
    label_names: list[str] | None = None,
    recorded: list[str] | None = None,
    taken: int = 0,
) -> Checkpoint:
    """The run, as pretrained.read gives one. base, name: from find_base. task: from task_name.

    label_names: what the user says. recorded: what the library says, for where minift.json says nothing. taken: positions that the
    method takes.
    """
    stored = task_of(directory, base, task, len(head.get("weight", ())), label_names, recorded, taken)
    plain = base.empty_body(stored["pool"]).state_dict().keys()
    return replace(
        base,
        tensors={ours: tensor for ours, tensor in base.tensors.items() if ours in plain},
        base_name=name,
        method=method,
        delta=True,
        recipe=None,
        task=stored,
        settings=settings_of(directory, stored["name"]),
        head=head,
        grafts=grafts,
        origin=base,
    )


def task_name(directory: Path, base: Checkpoint, usual: str) -> str:
    """The task that minift.json names, which must have the head that there is; else the usual one of such a head."""
    task = read_beside(directory).get("task")
    if task is None:
        return usual
    if not isinstance(task, dict):
        raise UserError(
            f"{directory / BESIDE}: task {str(task)[:60]} is none of a run's; delete the file to go on without its labels"
        )
    name = task.get("name", usual)
    if not isinstance(name, str) or not has_head(base.architecture, name) or HEADS[name].kind != HEADS[usual].kind:
        raise UserError(
            f"{directory / BESIDE}: task is {str(name)[:60]!r}, and the directory holds a head of {HEADS[usual].kind}; delete the "
            "file to go on without its labels"
        )
    return name


def labels_of(directory: Path, count: int, label_names: list[str] | None, recorded: list[str] | None) -> list[str]:
    said = read_beside(directory).get("task") or {}
    labels = label_names or said.get("labels") or recorded or [f"LABEL_{i}" for i in range(count)]
    texts = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not texts or len({*labels}) != count or len(labels) != count:
        where = "--label-names" if label_names else directory / BESIDE if said else directory
        raise UserError(f"{where}: labels {str(labels)[:60]} are no {count} different names, one for each row of the head")
    return labels


def task_of(
    directory: Path,
    base: Checkpoint,
    name: str,
    rows: int,
    label_names: list[str] | None,
    recorded: list[str] | None,
    taken: int,
) -> dict:
    """The task as the run had it, or as usual. name: of the task; rows: of the head."""
    said, where = read_beside(directory).get("task"), directory / BESIDE
    if said is None and name == TASKS["bert"] and rows == 1:
        name = "text-regression"
    if OUTPUTS.get(name, rows) != rows:
        raise UserError(f"{directory}: the head has {rows} rows, and that of {name} has {OUTPUTS[name]}")
    if label_names and (name in OUTPUTS or not rows):
        raise UserError(f"--label-names: the head is one of {name}, which has no labels")
    labels = [] if name in OUTPUTS or not rows else labels_of(directory, rows, label_names, recorded)
    length = None if base.tokenizer is None else min(128, base.max_length - taken)
    usual = usual_task(name, base, labels, FAMILIES[base.architecture].pool, length)
    task = usual | {field: value for field, value in (said or {}).items() if field not in ("pool", "labels")}
    try:
        task_from(task)
    except (UserError, ValueError) as error:
        hint = "delete the file to go on without its labels"
        if said is None:
            where, hint = directory, "say them with --label-names FILE, a name a line in the order of the head's rows"
        raise UserError(f"{where}: {error}; {hint}") from None
    return task


def settings_of(directory: Path, task: str) -> dict:
    """How data is read and batched: as the run did, or as usual."""
    usual = usual_settings(look_up(ALL_TASKS, task, "task"))
    said, file = read_beside(directory).get("settings", {}), directory / BESIDE
    if not isinstance(said, dict) or not all(type(value) is type(usual.get(field)) for field, value in said.items()):
        raise UserError(f"{file}: settings {str(said)[:60]} are none of a run's; delete the file to go on without its labels")
    if strange := said.get("layout", {}).keys() - usual["layout"].keys():
        raise UserError(f"{file}: layout has {min(strange)}, which is none of its flags")
    if said.get("precision", "float32") not in PRECISIONS:
        raise UserError(f"{file}: precision {said['precision']!r} is none of {', '.join(PRECISIONS)}")
    return usual | said
