"""The heads of the tasks: what transformers calls them, and what its config.json holds of a task. Written and read.

A run goes out as the class of its task, with its labels as id2label. A directory whose `architectures` names such a class comes in
as a run. What config.json has no field for (thresholds, lengths, how rows are decoded) stands in it under OURS, which transformers
keeps and does not read; of a directory of others it is assumed, and said.

Two heads change on the way. That of text-regression goes out with the scaling of the targets folded in, W deviation and
b deviation + mean, so that transformers gives true units. The decoder of masked-lm is the table of the word vectors, so it is not
written; read, it must be equal to the table.

Proved by tests/reference/test_heads.py: every task goes out, in again, and from transformers in; float64, 1e-10, then float32.
"""

import typing
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minift.errors import UserError, is_there, look_up
from minift.pretrained import Checkpoint, check_shapes, check_values, outline, read_object
from minift.tasks import TASKS
from minift.tasks.task import Task, described, task_from

OURS = "minift_task"
QUESTION = 384  # tokens of a window of question and context, as in the usual scripts; all others read what the model can take


class Head(NamedTuple):
    """A head of transformers."""

    kind: str  # AutoModelFor + this is its class; so are BertFor, RobertaFor, ..., but for those of CLASSES
    problem_type: str | None  # what config.json says besides, where the class has several losses
    names: dict[str, dict[str, str]]  # architecture -> module of the head here, "" the head itself -> module there


TEXT = ("bert", "roberta", "xlm-roberta")
POOLED = {"bert": {"": "classifier"}, **{name: {"": "classifier.out_proj"} for name in TEXT[1:]}, "gpt2": {"": "score"}}
OF_IMAGES = {"resnet": {"": "classifier.1"}, "efficientnet": {"": "classifier"}}
BERT_LM = {"dense": "cls.predictions.transform.dense", "norm": "cls.predictions.transform.LayerNorm", "": "cls.predictions"}
ROBERTA_LM = {"dense": "lm_head.dense", "norm": "lm_head.layer_norm", "": "lm_head"}

# Task -> its head. Of the tasks that share a class the first is meant where config.json names no problem_type.
HEADS = {
    "text-classification": Head("SequenceClassification", "single_label_classification", POOLED),
    "multi-label-classification": Head("SequenceClassification", "multi_label_classification", POOLED),
    "text-regression": Head("SequenceClassification", "regression", POOLED),
    "image-classification": Head("ImageClassification", "single_label_classification", OF_IMAGES),
    "multi-label-image-classification": Head("ImageClassification", "multi_label_classification", OF_IMAGES),
    "token-classification": Head("TokenClassification", None, {name: {"": "classifier"} for name in (*TEXT, "gpt2")}),
    "question-answering": Head("QuestionAnswering", None, {name: {"": "qa_outputs"} for name in TEXT}),
    "masked-lm": Head("MaskedLM", None, {"bert": BERT_LM} | {name: ROBERTA_LM for name in TEXT[1:]}),
    "causal-lm": Head("CausalLM", None, {"gpt2": {}}),  # the table of the words, so it has no tensors of its own
    "instruction-tuning": Head("CausalLM", None, {"gpt2": {}}),
}
CLASSES = {"GPT2ForCausalLM": "GPT2LMHeadModel"}

OUTPUTS = {"text-regression": 1, "question-answering": 2}  # of heads whose rows are no labels


def class_of(name: str, head: Head) -> str:
    """The class of transformers. name: of the architecture there."""
    return CLASSES.get(f"{name}For{head.kind}", f"{name}For{head.kind}")


def has_head(architecture: str, task: str) -> bool:
    """Whether transformers has a class for this task on this architecture."""
    return task in HEADS and architecture in HEADS[task].names


def named_there(tensors: Mapping[str, Tensor], architecture: str, task: str) -> dict[str, Tensor]:
    """The tensors of a head under transformers' names."""
    table = HEADS[task].names[architecture]
    split = {name: name.rpartition(".") for name in tensors}
    return {f"{table[module]}.{leaf}": tensors[name] for name, (module, _, leaf) in split.items()}


# ---- out ----


def folded(checkpoint: Checkpoint) -> Checkpoint:
    """The same, with the scaling of regression's targets in the head: its outputs are then the predictions."""
    if checkpoint.task is None or checkpoint.task["name"] != "text-regression":
        return checkpoint
    offset, scale = task_from(checkpoint.task).scaling
    dtype = checkpoint.head["weight"].dtype
    head = {"weight": (checkpoint.head["weight"].double() * scale).to(dtype)}
    if "bias" in checkpoint.head:
        head["bias"] = (checkpoint.head["bias"].double() * scale + offset).to(dtype)
    elif offset:
        raise UserError(
            f"{checkpoint.source}: the head has no bias, in which transformers could keep the mean of the targets, {offset:.4g}; "
            "train with --no-scale-targets, on targets around 0"
        )
    if not all(tensor.isfinite().all() for tensor in head.values()):
        raise UserError(f"{checkpoint.source}: the head in true units is beyond the range of {str(dtype).removeprefix('torch.')}")
    return replace(checkpoint, head=head, task=checkpoint.task | {"scaled": False})


def config_of(checkpoint: Checkpoint, name: str) -> dict:
    """Fields of config.json for a run, or for a body with the head of its pretraining. name: transformers' of the architecture."""
    task = checkpoint.task or {"name": next(iter(checkpoint.heads))}
    head = HEADS[task["name"]]
    config = {"architectures": [class_of(name, head)]}
    labels = ["LABEL_0"] if task["name"] == "text-regression" else task.get("labels")
    if head.problem_type:
        config["problem_type"] = head.problem_type
    if labels:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    if checkpoint.task:
        config[OURS] = {field: value for field, value in task.items() if field not in ("labels", "pool")}
    return config


# ---- in ----


def bring_in(
    directory: Path,
    config: dict,
    family,
    checkpoint: Checkpoint,
    report,
    wanted: str | None = None,
    pairs: bool = False,
) -> Checkpoint:
    """A body that has been read, as what the directory holds: a run, or a body with the head of its pretraining.

    config: its config.json. family: of huggingface.FAMILIES. report: has what stood outside the body, and is told what was taken.
    wanted: run or body; None: a run where a task has this head. pairs: a row of it is a pair of texts.
    """
    file, task = directory / "config.json", None
    if checkpoint.causal and "lm_head.weight" in report.outside:
        if torch.equal(report.outside["lm_head.weight"], checkpoint.tensors["embeddings.word.weight"]):
            report.outside.pop("lm_head.weight")  # tied, as in the body's own use of the table
            report.dropped.remove("lm_head.weight")
        else:
            report.said.append("lm_head.weight is another than the word vectors, to which a head of causal-lm is tied here")
    try:
        name = None if wanted == "body" else task_in(config, family, checkpoint, report.outside, wanted)
        if name is not None:
            task = fields_in(directory, config, family, checkpoint, report, name, pairs)
    except ValueError as error:  # of what transformers can express and no task can
        if wanted == "run":
            raise UserError(f"{file}: {error}") from None
        report.said.append(f"taken as a body: {error}")
    if task is None:
        if pairs:
            raise UserError(f"--pairs: {directory} does not come in as a run of texts, so there are no rows")
        return with_pretrained(directory / report.file, checkpoint, report)
    return as_run(directory / report.file, family, checkpoint, report, task)


def task_in(config: dict, family, checkpoint: Checkpoint, outside: dict[str, Tensor], wanted: str | None) -> str | None:
    """The task of the class that config.json names; None where it names a body. Raises ValueError where there is no such task."""
    classes = config.get("architectures")
    named = next((one for one in classes or () if isinstance(one, str)), None) if isinstance(classes, list | None) else None
    known = {name: head for name, head in HEADS.items() if has_head(checkpoint.architecture, name)}
    if named is None or not (named.startswith(f"{family.name}For") or named in CLASSES.values()):
        if wanted == "run":
            raise ValueError(f"architectures is {classes!r:.60}, which has no head")
        return None
    fitting = {name: head for name, head in known.items() if class_of(family.name, head) == named and name in TASKS}
    if not fitting:
        raise ValueError(f"no task has the head of {named}")
    first = next(iter(fitting))
    if first == "causal-lm":
        stored = config.get(OURS)
        own = stored.get("name") if isinstance(stored, dict) else None
        if own not in fitting and wanted is None:
            return None  # the body is all there is of it
        return own if own in fitting else first
    if first == "masked-lm" and checkpoint.own_pool and wanted is None:
        raise ValueError(
            f"besides the head of {named} it holds a pooler, which a run of masked-lm has not (--as run leaves it out)"
        )
    problem = config.get("problem_type")
    if problem is None and fitting[first].problem_type:
        one = len(rows_of(outside, fitting[first], checkpoint.architecture)) == 1
        problem = "regression" if one and "text-regression" in fitting else fitting[first].problem_type
    found = next((name for name, head in fitting.items() if problem in (head.problem_type, None) or not head.problem_type), None)
    if found is None:
        raise ValueError(f"no task has problem_type {problem!r:.40} of {named}")
    return found


def rows_of(outside: dict[str, Tensor], head: Head, architecture: str) -> Tensor:
    """The matrix of a linear head, (outputs, D)."""
    name = f"{head.names[architecture]['']}.weight"
    if name not in outside or outside[name].dim() != 2:
        raise ValueError(f"there is no matrix {name} in the weights, which For{head.kind} has")
    return outside[name]


def fields_in(directory: Path, config: dict, family, checkpoint: Checkpoint, report, name: str, pairs: bool) -> dict:
    """The task as config.json of a run stores it. Raises ValueError where its labels are none that the task can have."""
    labels, rows = [], None
    if HEADS[name].kind not in ("MaskedLM", "CausalLM"):
        rows = len(rows_of(report.outside, HEADS[name], checkpoint.architecture))
        expected = OUTPUTS.get(name)
        if expected not in (None, rows):
            raise ValueError(f"the head has {rows} outputs, and that of {name} has {expected}")
        labels = labels_in(config, rows, report) if expected is None else []
    length, where = length_in(directory, checkpoint)
    usual = usual_task(name, checkpoint, labels, family.pool, length, pairs)
    stored = config.get(OURS)
    if isinstance(stored, dict) and stored.get("name") == name:
        task = usual | {field: value for field, value in stored.items() if field not in ("labels", "pool")}
        task |= {"pairs": True} if pairs else {}
        try:
            task_from(task)
        except (UserError, ValueError) as error:
            report.said.append(f"{OURS} of config.json left out, as it does not fit: {error}")
        else:
            return task
    if pairs and "pairs" not in usual:
        raise UserError(f"--pairs: rows of {name} are no pairs of texts")
    try:
        task_from(usual)
    except UserError as error:
        raise ValueError(str(error)) from None
    report.said += assumed(usual, where)
    return usual


def assumed(task: dict, where: str) -> list[str]:
    """What is said of the fields that config.json does not tell."""
    notes = []
    if "max_length" in task:
        notes.append(f"up to {task['max_length']} tokens of a {'text' if 'pairs' in task else 'window'} ({where})")
    if task.get("pairs") is False:
        notes.append("a row is one text (pairs: --pairs)")
    if "thresholds" in task:
        notes.append("a row has the labels of probability 0.5 and more")
    if "mean" in task:
        notes.append("the targets are as the head gives them, the mean of the training rows is called 0")
    if task.get("punctuation_apart"):
        notes.append("punctuation of a text is words of its own")
    if "no_answer" in task:
        notes.append("every question has an answer")
    return [f"assumed, as config.json does not say: {', '.join(notes)}"] if notes else []


def labels_in(config: dict, rows: int, report) -> list[str]:
    """id2label in the order of the ids; LABEL_0, ... where there is none, as in transformers."""
    stored = config.get("id2label")
    if stored is None:
        return [f"LABEL_{i}" for i in range(rows)]
    if not isinstance(stored, dict) or sorted(stored) != sorted(map(str, range(rows))):
        raise ValueError(f"id2label {str(stored)[:60]} does not number the {rows} outputs of the head from 0")
    labels = [stored[str(i)] for i in range(rows)]
    if not all(isinstance(label, str | int) and label != "" for label in labels):
        raise ValueError(f"id2label {str(stored)[:60]} has labels that are no names")
    labels = [str(label) for label in labels]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        labels = [f"{label} ({i})" if label in twice else label for i, label in enumerate(labels)]
        report.said.append(f"id2label has {', '.join(twice[:3])} for several ids, which are told apart by their numbers")
    return labels


def length_in(directory: Path, checkpoint: Checkpoint) -> tuple[int | None, str]:
    """(the most tokens of a text, where that comes from)"""
    if checkpoint.tokenizer is None:
        return None, ""
    file = directory / "tokenizer_config.json"
    said = read_object(file).get("model_max_length") if is_there(file) else None
    if type(said) is int and 3 <= said < checkpoint.max_length:
        return said, "model_max_length of the tokenizer"
    return checkpoint.max_length, "all that the model can take"


def usual_task(name: str, base: Checkpoint, labels: list[str], pool: str, length: int | None, pairs: bool = False) -> dict:
    """The fields of a task of which nothing is known but its head. pool: what a head on pooled outputs reads."""
    task = look_up(TASKS, name, "task")
    hidden = typing.get_type_hints(task)["pool"] is type(None)
    length = length and (min(QUESTION, length) if name == "question-answering" else length)
    known = {
        "labels": labels,
        "pool": None if hidden else pool,
        "max_length": length,
        "pairs": pairs,
        "overlap": length and length // (3 if name == "question-answering" else 4),
        # WordPiece parts words and punctuation in any case, a byte-level tokenizer makes other tokens of words that stand apart
        "punctuation_apart": base.architecture == "bert",
        "max_answer_length": 30,
        "no_answer": False,
        "threshold": None,
        "mean": 0.0,
        "deviation": 1.0,
        "scaled": False,
        "thresholds": [0.5] * len(labels),
        "tuning": "fixed",
        "tuned_on": 0,
        "blocks": "within",
        "masking": "exact",
        "mask_share": 0.15,
    }
    return {"name": name} | {f.name: known[f.name] for f in fields(task) if f.name in known}


def usual_settings(task: type[Task]) -> dict:
    """How a run reads and batches its data, where nothing is said of it."""
    layout = {name: value for name, value in asdict(task.LAYOUT()).items() if name != "workers"}
    return {"batch_size": 32, "precision": "float32", "frozen": 0, "layout": layout}


def as_run(file: Path, family, checkpoint: Checkpoint, report, stored: dict) -> Checkpoint:
    """The body, its head out of what stood outside, and the task as a run, which was trained whole."""
    task, outside = task_from(stored), dict(report.outside)
    with outline():
        body = checkpoint.empty_body(task.pool)
        expected = task.head(body).state_dict()
    tensors = dict(checkpoint.tensors)
    if task.pool == "cls" and family.pooler:
        ours = {f"pooler.dense.{leaf}": f"{family.pooler}{leaf}" for leaf in ("weight", "bias")}
        tensors |= {name: outside.pop(theirs) for name, theirs in ours.items() if theirs in outside}
    plain = body.state_dict()
    report.dropped += sorted(f"{family.prefix}{name}" for name in tensors.keys() - plain.keys())
    tensors = {name: tensors[name] for name in plain if name in tensors}
    check_shapes(file, tensors, plain, f"a run of {stored['name']}")
    head = take_head(file, outside, checkpoint, stored["name"], expected)
    check_values(file, tensors | head)
    report.dropped = [name for name in report.dropped if name in outside or name not in report.outside]
    return replace(
        checkpoint,
        tensors=tensors,
        head=head,
        task=described(stored["name"], task),
        settings=usual_settings(type(task)),
        method="full",
    )


def take_head(
    file: Path, outside: dict[str, Tensor], checkpoint: Checkpoint, task: str, expected: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a head under minift's names, taken out of `outside`. expected: like them, of any device."""
    if task == "masked-lm":
        untie(file, outside, HEADS[task].names[checkpoint.architecture][""], checkpoint.tensors["embeddings.word.weight"])
    theirs = named_there(expected, checkpoint.architecture, task)
    found = {name: outside.pop(name) for name in theirs if name in outside}
    check_shapes(file, found, theirs, f"a head of {task}")
    return {ours: found[name] for ours, name in zip(expected, theirs, strict=True)}


def untie(file: Path, outside: dict[str, Tensor], prefix: str, table: Tensor) -> None:
    """Take the decoder of a head of masked-lm out of `outside`: its matrix is the table, its bias the head's own."""
    matrix, bias = (outside.pop(f"{prefix}.decoder.{leaf}", None) for leaf in ("weight", "bias"))
    own = outside.setdefault(f"{prefix}.bias", bias) if bias is not None else None
    for name, one, other in (("weight", matrix, table), ("bias", bias, own)):
        if one is not None and not torch.equal(one, other):
            raise UserError(
                f"{file}: {prefix}.decoder.{name} is another than {'the word vectors' if name == 'weight' else f'{prefix}.bias'}, "
                "and the head of masked-lm is tied to them; --as body takes the body alone"
            )


def with_pretrained(file: Path, checkpoint: Checkpoint, report) -> Checkpoint:
    """A body with its head of masked-lm, where that stood whole outside it."""
    if not has_head(checkpoint.architecture, "masked-lm"):
        return checkpoint
    width, outside = checkpoint.width, dict(report.outside)
    shapes = {"dense.weight": (width, width), **dict.fromkeys(("dense.bias", "norm.weight", "norm.bias"), (width,))}
    expected = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    expected["bias"] = torch.empty(len(checkpoint.tensors["embeddings.word.weight"]), device="meta")
    try:
        head = take_head(file, outside, checkpoint, "masked-lm", expected)
    except UserError:  # a part of it, or one of its own table
        return checkpoint
    check_values(file, head)
    report.dropped = [name for name in report.dropped if name in outside]
    report.said.append("the head of masked-lm is kept beside the body, for --task masked-lm to go on from")
    return replace(checkpoint, heads={"masked-lm": head})
