"""Checkpoints in and out.

    python convert.py SOURCE [--out DIR] [--dtype float16] [--check]     SOURCE: hub id; directory of a transformers checkpoint;
                                                                         resnet50, -101 or -152 of torchvision, with -v1 its older
                                                                         weights, efficientnet-b0 to -b7; FILE.pth or .safetensors
                                                                         in torchvision's or timm's names.
                                                                         What transformers has fine-tuned for a task comes in as a
                                                                         run, its head and labels with it; --as body: without them
    python convert.py RUN-OR-DIR --to hf --out DIR [--check]             what AutoModel... and AutoTokenizer or AutoImageProcessor
                                                                         of transformers load
    python convert.py RUN-OR-DIR --to torchvision --out FILE [--check]   what load_state_dict of torchvision's networks takes
    python convert.py RUN-OR-DIR --to timm --out FILE [--check]          what load_state_dict of timm's networks takes
    python convert.py RUN --to minift --out DIR                          the run as a plain model, what it has added merged;
                                                                         --interpolate 0.5: half of the way back to the
                                                                         pretrained weights (WiSE-FT)
    python convert.py RUN --to peft|adapters --out DIR                   what the run has added, for the peft or adapters library
    python convert.py DIR [--base NAME] --out RUN                        such a directory as a run over a converted model

A run of lora, dora or ia3 is merged on its way to transformers and torchvision too.

The work is done in minift/formats; this file reads arguments, says what happened and compares with the library (--check).
"""

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from minift.cli import is_checkout, spelled
from minift.errors import UserError, command
from minift.flags import Parser

DTYPES = ("float32", "float16", "bfloat16")
TOLERANCE = 1e-9  # of --check, in float64


def main(argv: list[str]) -> int | None:
    parser = Parser(spelled("convert"), "Convert a checkpoint into minift's layout, or out of it with --to.")
    parser.add_argument(
        "source",
        help="hub id; directory of a transformers checkpoint, of peft or of the adapters library; resnet50, resnet101 or resnet152 "
        "(torchvision's V2 weights; V1: resnet50-v1, ...), efficientnet-b0 to -b7 (torchvision's); .pth or .safetensors file in "
        "torchvision's or timm's names; with --to a run or a converted directory",
    )
    parser.add_argument(
        "--to", choices=[*EXPORTS, *ADDED], help="write another layout: hf = transformers; minift = the run as a plain model"
    )
    parser.add_argument(
        "--out",
        help="directory to write (default: NAME below $MINIFT_WEIGHTS, weights/ of the checkout or ~/.cache/minift, the first that "
        "applies); with --to torchvision or timm a file",
    )
    parser.add_argument("--base", help="of a directory of peft or adapters: the converted model below (default: the recorded one)")
    parser.add_argument(
        "--as",
        dest="wanted",
        choices=["run", "body"],
        help="of a transformers checkpoint: a run, ready to predict, or its body alone (default: a run where a task has its head)",
    )
    parser.add_argument("--label-names", help="of a directory of peft or adapters: file of its labels, a name a line, or .json")
    parser.add_argument("--pairs", action="store_true", help="of such a run: a row is a pair of texts, which its files do not say")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights written (default: as they are)")
    parser.add_argument(
        "--interpolate",
        type=float,
        metavar="SHARE",
        help="with --to minift: interpolate the weights (WiSE-FT) between the checkpoint that the run started from (0) and the run "
        "(1); the head stays the run's",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub repository")
    parser.add_argument(
        "--preprocessing",
        choices=["v1", "v2"],
        help="of a file of a ResNet in torchvision's names: shorter side to 256 (v1) or 232 (v2), then the middle 224 x 224 "
        "(default: what the file's hash or the .json beside it tells, else v1)",
    )
    parser.add_argument(
        "--check", action="store_true", help="compare every layer with the other library's model on the same weights"
    )
    arguments = parser.parse(argv)
    if arguments.interpolate is not None:
        if arguments.to != "minift":
            raise UserError("--interpolate belongs to --to minift; other layouts are written from what that writes")
        if not 0 <= arguments.interpolate <= 1:
            raise UserError(f"--interpolate {arguments.interpolate:g}: a number from 0 to 1 is expected")
    return export(arguments) if arguments.to else bring_in(arguments)


# ---- in ----


def bring_in(arguments: argparse.Namespace) -> int | None:
    place, name = Path(arguments.source), "adapter_config.json"
    if (place / name).is_file() or (any(place.glob(f"*/{name}")) and not (place / "config.json").is_file()):
        return bring_in_run(arguments)
    if arguments.base:
        raise UserError(f"--base {arguments.base}: {arguments.source} is no directory of peft or of the adapters library")
    refuse_flags(arguments, ("label_names",), f"{arguments.source} is no directory of peft or of the adapters library")
    if arguments.pairs and arguments.wanted == "body":
        raise UserError("--pairs is for a run, and --as body takes the body alone")
    from minift.pretrained import read as read_converted
    from minift.pretrained import sha256, weights_directory, write

    name, read = source_of(arguments)
    out = new_place(arguments.out or weights_directory() / name)
    place, checkpoint, report = read()
    cast(checkpoint, arguments.dtype)
    write(out, checkpoint)

    print(f"read     {place if place.is_file() else place / report.file}")
    for said in report.said:
        print(f"note     {said}")
    count = sum(parameter.numel() for parameter in checkpoint.empty_body(checkpoint.own_pool).parameters())
    print(f"body     {checkpoint.architecture}, {count:,} parameters, {description_of_inputs(checkpoint)}")
    if checkpoint.task is not None:
        print(f"run      {described(checkpoint.task)}")
    print(f"dropped  {', '.join(report.dropped) if report.dropped else 'nothing'}")
    print(f"written  {out}, sha256 of model.safetensors {sha256(out / 'model.safetensors')}")
    if checkpoint.task is not None:
        print(f"predict  python -m minift.predict {out} ...")
    return check(read_converted(out), place, arguments.dtype) if arguments.check else None


def bring_in_run(arguments: argparse.Namespace) -> None:
    """A directory of peft or of the adapters library as a run."""
    from minift.data.labels import read_label_names
    from minift.formats import adapters, peft
    from minift.pretrained import write

    place = Path(arguments.source)
    refuse_flags(
        arguments, ("wanted", "pairs", "dtype", "revision", "preprocessing", "check"), f"{place} holds what was added to a model"
    )
    if arguments.out is None:
        raise UserError(f"{place}: say where the run is to be with --out, as runs/{place.resolve().name}")
    out = new_place(arguments.out)
    labels = arguments.label_names and list(read_label_names(arguments.label_names).values())
    checkpoint = (peft.read if peft.is_peft(place) else adapters.read_run)(place, arguments.base, labels)
    write(out, checkpoint)
    print(f"read     {place}: {checkpoint.method} over {checkpoint.base_name}")
    print(f"run      {described(checkpoint.task)}")
    print(f"written  {out}; python -m minift.predict {out} ...")


def described(task: dict) -> str:
    """The task of a run, and its labels."""
    labels = task.get("labels") or []
    shown = ", ".join(labels[:12]) + (f" and {len(labels) - 12} more" if labels[12:] else "")
    return f"{task['name']}: {shown}" if labels else task["name"]


def refuse_flags(arguments: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if getattr(arguments, name):
            raise UserError(f"--{'as' if name == 'wanted' else name.replace('_', '-')}: {why}")


def source_of(arguments: argparse.Namespace) -> tuple[str, Callable]:
    """(name of what the source gives, what reads it: (file or directory, Checkpoint, Report)). Nothing is downloaded yet."""
    from minift.formats import torchvision
    from minift.pretrained import check_path, is_converted

    source, place = arguments.source, Path(arguments.source)
    check_path(place)
    if any(is_converted(directory) for directory in (place, place / "model")):
        raise UserError(f"{place}: is in minift's layout already; to bring it out: {spelled('convert')} {place} --to hf --out DIR")
    if arguments.revision and place.exists():
        raise UserError(f"--revision {arguments.revision}: {place} is a {'directory' if place.is_dir() else 'file'} here, "
                        "not a hub repository")  # fmt: skip
    if arguments.preprocessing and not place.is_file():
        raise UserError(f"--preprocessing {arguments.preprocessing} belongs to a file in torchvision's names; {source} is none")
    as_what = {"wanted": arguments.wanted, "pairs": arguments.pairs}
    if place.is_dir():
        return place.resolve().name, partial(read_directory, place, source, **as_what)
    if place.is_file() or source in torchvision.WEIGHTS:
        refuse_flags(arguments, ("wanted", "pairs"), f"{source} holds weights in torchvision's names, of which the body is taken")
    if place.is_file():
        return place.stem, partial(read_file, place, arguments.preprocessing)
    if place.suffix in (".pth", ".pt", ".bin", ".safetensors"):
        raise UserError(f"{place}: no such file")
    if source in torchvision.WEIGHTS:
        if arguments.revision:
            raise UserError(f"--revision {arguments.revision}: {source} is torchvision's, whose weights are chosen by -v1 or -v2")
        return source, partial(read_published, source)
    return source.rstrip("/").split("/")[-1], partial(read_from_hub, source, arguments.revision, **as_what)


def read_directory(place: Path, source: str, revision: str | None = None, *, wanted: str | None, pairs: bool):
    from minift.formats import efficientnet, huggingface, torchvision

    if efficientnet.timm_config(place) is not None:
        return place, *torchvision.read(place / "model.safetensors", source, revision)
    return place, *huggingface.read_with_head(place, source, revision, wanted, pairs)


def read_file(place: Path, preprocessing: str | None):
    from minift.formats import torchvision

    return place, *torchvision.read(place, str(place), preprocessing=preprocessing)


def read_published(name: str):
    from minift.formats import torchvision

    place = torchvision.fetch(name)
    return place, *torchvision.read(place, name, revision=place.name)


def read_from_hub(repository: str, revision: str | None, *, wanted: str | None, pairs: bool):
    from minift.formats import hub

    place, commit = hub.fetch(repository, revision)
    return read_directory(place, repository, commit, wanted=wanted, pairs=pairs)


def description_of_inputs(checkpoint) -> str:
    if checkpoint.preprocessing is None:
        return f"pooler {'yes' if checkpoint.own_pool else 'no'}, recorded pooling {checkpoint.pool}"
    p = checkpoint.preprocessing
    colours = f"mean {', '.join(map(str, p['mean']))}, std {', '.join(map(str, p['std']))}"
    return f"images resized to {p['resize']} ({p['interpolation']}), cropped to {p['crop']}, {colours}"


# ---- out ----


def export(arguments: argparse.Namespace) -> int | None:
    from minift.formats.heads import HEADS, folded, has_head
    from minift.pretrained import find, read

    if arguments.out is None:
        raise UserError(f"--to {arguments.to}: say where with --out {'FILE.pth' if arguments.to in FILES else 'DIR'}")
    outward = ("revision", "preprocessing", "base", "label_names", "wanted", "pairs")
    refuse_flags(arguments, outward, "belongs to what is brought in; with --to there is nothing")
    place = find(arguments.source)
    out = new_place(arguments.out)
    checkpoint = read(place)
    if checkpoint.task is not None and not has_head(checkpoint.architecture, checkpoint.task["name"]) and arguments.to != "minift":
        task = checkpoint.task["name"]
        raise UserError(f"--to {arguments.to}: {place} is a run of {task}; heads are written of {' and '.join(HEADS)}")
    if arguments.to != "minift":
        checkpoint = folded(checkpoint)
    if arguments.to in ADDED:
        refuse_flags(arguments, ("dtype", "check"), f"--to {arguments.to} writes what the run has added as it is")
        return ADDED[arguments.to](checkpoint, out)
    if arguments.check and arguments.to == "hf":
        need("transformers")  # before anything is written
    if arguments.to == "minift":
        refuse_flags(arguments, ("check",), "--to minift has no other library to compare with; --to hf has")
    checkpoint = made_plain(checkpoint, f", before --dtype {arguments.dtype}" if arguments.dtype else "")
    if arguments.interpolate is not None:
        from minift.merging import interpolate, started_from

        checkpoint = interpolate(checkpoint, started_from(place), arguments.interpolate)
    cast(checkpoint, arguments.dtype)
    EXPORTS[arguments.to](checkpoint, out, arguments.source)
    return check(checkpoint, out, arguments.dtype) if arguments.check else None


def made_plain(checkpoint, when: str = ""):
    """A run as a whole model: what its method has added is merged, and what that has changed is printed, with `when` behind it."""
    if not checkpoint.grafts:
        if checkpoint.delta:  # its base may be stored in another type
            checkpoint.tensors = {name: t.float() if t.is_floating_point() else t for name, t in checkpoint.tensors.items()}
        return replace(checkpoint, delta=False, origin=None)
    from minift.merging import merge_run

    whole, report = merge_run(checkpoint)
    largest = max(report.weights, key=report.weights.get)
    print(f"merged   {checkpoint.method} in {len(report.weights)} modules, in float32")
    print(f"weights  changed by up to {report.weights[largest]:.2g} ({largest})")
    print(f"logits   {'not compared' if report.logits is None else f'changed by up to {report.logits:.1e}{when}'}: {report.rows}")
    return whole


def export_to_minift(checkpoint, out: Path, source: str) -> None:
    from minift.pretrained import write

    if checkpoint.task is None:
        raise UserError(f"{source} is a plain model in minift's layout already; --to minift is for runs")
    write(out, checkpoint)
    print(f"written  {out}; python -m minift.predict {out} ..., or {spelled('train')} --model {out} ... to go on from it")


def export_to_hf(checkpoint, out: Path, source: str) -> None:
    from minift.formats import huggingface
    from minift.formats.heads import OURS

    if checkpoint.task and (reason := huggingface.why_no_export(checkpoint)):
        raise UserError(f"{source}: {reason}")
    huggingface.write(out, checkpoint)
    inputs = "AutoTokenizer" if checkpoint.tokenizer else "AutoImageProcessor"
    print(f"written  {out}; load it with transformers.{auto_class(checkpoint)}.from_pretrained({str(out)!r}) and {inputs}")
    if checkpoint.task and "thresholds" in checkpoint.task:
        print(f"note     the thresholds of the labels stand in config.json ({OURS}); transformers does not read them")


def export_to_file(checkpoint, out: Path, source: str, library: str) -> None:
    """For torchvision or timm."""
    from minift.formats import torchvision

    if out.suffix not in torchvision.SUFFIXES:
        raise UserError(f"{out}: --to {library} writes one file, so --out ends in {', '.join(torchvision.SUFFIXES)}")
    beside = new_place(out.with_suffix(".json"))
    call = torchvision.write(out, checkpoint, library)
    loaded = "safetensors.torch.load_file" if out.suffix == ".safetensors" else "torch.load"
    print(f"written  {out}; load it with model = {call}; model.load_state_dict({loaded}({str(out)!r}))")
    if not checkpoint.head and not call.startswith("timm"):
        part = "fc" if checkpoint.architecture == "resnet" else "classifier"
        print(f"note     there is no head in it: before load_state_dict, model.{part} = torch.nn.Identity()")
    print(f"written  {beside}: labels and preprocessing, which the file cannot hold")


def export_to_peft(checkpoint, out: Path) -> None:
    from minift.formats import peft

    peft.write(out, checkpoint)
    tell_how(checkpoint, out, f"peft.PeftModel.from_pretrained(model, {str(out)!r})")


def export_to_adapters(checkpoint, out: Path) -> None:
    from minift.formats import adapters

    adapters.write_run(out, checkpoint)
    tell_how(checkpoint, out, f"adapters.init(model); model.load_adapter({str(out)!r}, set_active=True)")


def tell_how(checkpoint, out: Path, load: str) -> None:
    """How the other library loads what was written, over the same base."""
    rows = f", num_labels={len(checkpoint.head['weight'])}" if checkpoint.head else ""
    other = ", ignore_mismatched_sizes=True" if checkpoint.origin.task and checkpoint.head else ""
    print(f"written  {out}; its base model, BASE: {spelled('convert')} {checkpoint.base_name} --to hf --out BASE")
    print(f"         model = transformers.{auto_class(checkpoint)}.from_pretrained('BASE'{rows}{other})")
    print(f"         {load}")


def auto_class(checkpoint) -> str:
    """The class of transformers that loads it."""
    from minift.formats.heads import HEADS

    return f"AutoModelFor{HEADS[checkpoint.task['name']].kind}" if checkpoint.task else "AutoModel"


def new_place(out: str | Path) -> Path:
    from minift.pretrained import check_path

    out = Path(out).resolve()
    check_path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; give another one with --out")
    return out


def cast(checkpoint, dtype: str | None) -> None:
    import torch

    if dtype is None:
        return
    for tensors in (checkpoint.tensors, checkpoint.head, *checkpoint.heads.values()):
        for name, tensor in tensors.items():
            statistic = name.endswith((".running_mean", ".running_var"))  # a variance may be tiny or huge, so it is not rounded
            if tensor.is_floating_point() and not statistic:
                tensors[name] = tensor.to(getattr(torch, dtype))
                if tensor.isfinite().all() and not tensors[name].isfinite().all():
                    raise UserError(f"--dtype {dtype}: {name} holds {tensor.abs().max().item():.3g}, which is beyond its range; "
                                    "take bfloat16")  # fmt: skip


# ---- check ----

# Architecture and library -> module here: module there whose output is compared; numbers as in the name tables of the model's file.
BERT = {"embeddings": "embeddings", "layers.{}": "encoder.layer.{i}", "pooler": "pooler"}
COMPARED = {
    **{(architecture, "transformers"): BERT for architecture in ("bert", "roberta", "xlm-roberta")},
    ("gpt2", "transformers"): {"embeddings": "drop", "layers.{}": "h.{i}", "final": "ln_f", "pooler": "pooler"},
    ("resnet", "transformers"): {"stem": "embedder", "blocks.{}": "encoder.stages.{g}.layers.{b}", "pooler": "pooler"},
    ("resnet", "torchvision"): {"stem": "maxpool", "blocks.{}": "layer{G}.{b}", "pooler": "avgpool"},
    ("efficientnet", "transformers"): {
        **{"stem": "embeddings", "blocks.{}": "encoder.blocks.{i}", "top": "encoder.top_activation", "pooler": "pooler"},
    },
    ("efficientnet", "torchvision"): {
        **{"stem": "features.0", "blocks.{}": "features.{G}.{b}", "top": "features.8", "pooler": "avgpool"},
    },
    ("efficientnet", "timm"): {"stem": "bn1", "blocks.{}": "blocks.{g}.{b}", "top": "bn2", "pooler": "global_pool"},
}


def check(checkpoint, theirs: Path, dtype: str | None) -> int:
    """Print layer by layer the largest difference between minift's model and the library's on the same weights, in float64.

    checkpoint: of minift's, plain; theirs: a transformers directory or a file in torchvision's names; dtype: what
    the weights were rounded to on the way. Returns 1 where a difference is above TOLERANCE, else 0.
    """
    import torch

    from minift.formats.huggingface import look_up_module
    from minift.tasks.task import task_from

    cast(checkpoint, dtype)
    of_images = checkpoint.preprocessing is not None
    task = task_from(checkpoint.task) if checkpoint.task else None
    pool = task.pool if task else "mean" if of_images else checkpoint.own_pool
    body = checkpoint.body(pool, dtype=torch.float64).eval()
    library, version, whole, base = reference(checkpoint, theirs, body)
    for parameter in whole.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype or "float32"))
    whole.double().eval()
    described, inputs, ours, kept = random_images(body) if of_images else random_texts(body.config)

    names = [name for names in body.stages.values() for name in names]
    table = COMPARED[checkpoint.architecture, library]
    expected, found = {}, {}

    def keep(name: str):
        def hook(module, arguments, output):
            expected[name] = (output if isinstance(output, torch.Tensor) else output[0]).clone()

        return hook

    theirs = {name: look_up_module(name, table, body.numbering()) for name in names}
    if theirs.get("pooler") not in dict(base.named_modules()):  # of RoBERTa's classifier it is a part of the head
        theirs.pop("pooler", None)
    for name, there in theirs.items():
        base.get_submodule(there).register_forward_hook(keep(name))
    with torch.inference_mode():
        output = whole(**inputs) if isinstance(inputs, dict) else whole(*inputs)
        state = body.begin(*ours)
        for name, stage in zip(names, body.walk(), strict=True):
            state = stage(state)
            if name not in theirs:
                continue
            found[name] = state.pooled if name == "pooler" else state.hidden[kept]
            expected[name] = expected[name].flatten(1) if name == "pooler" else expected[name][kept]
        if task is not None:
            head = task.head(body).double().eval()
            head.load_state_dict({name: tensor.double() for name, tensor in checkpoint.head.items()})
            outputs = head.logits(state.hidden) if hasattr(head, "logits") else head(state, every_token(state))
            theirs_of_head = outputs_of(output)
            by_token = outputs.ndim == 3
            found["head"] = outputs[kept] if by_token else outputs
            expected["head"] = theirs_of_head[kept] if by_token else theirs_of_head
    worst = {name: (found[name] - expected[name]).abs().max().item() for name in found}
    print(f"\nlargest difference from {library} {version}, float64, {described}")
    for name, value in worst.items():
        print(f"  {name:14s} {value:.1e}{'' if value <= TOLERANCE else f'  above {TOLERANCE}'}")
    return int(not all(value <= TOLERANCE for value in worst.values()))


def reference(checkpoint, theirs: Path, body) -> tuple:
    """(library, its version, its model with the head if there is one to compare, its body)."""
    if theirs.is_file():
        import torchvision

        from minift.formats.efficientnet import names_in
        from minift.formats.huggingface import Report
        from minift.formats.torchvision import load, state_dict

        tensors = state_dict(theirs, Report(theirs.name, []))
        names = names_in(tensors)
        if names is not None and names.library != "torchvision":
            return in_timm(checkpoint, body, tensors if names.library == "timm" else None)
        network = load(theirs, body.config)
        return "torchvision", torchvision.__version__, network, network
    need("transformers")
    import transformers

    transformers.logging.set_verbosity_error()
    whole = getattr(transformers, auto_class(checkpoint)).from_pretrained(theirs)
    return "transformers", transformers.__version__, whole, whole.base_model


def in_timm(checkpoint, body, tensors: dict | None) -> tuple:
    """The same of an EfficientNet in timm. tensors: in its names; None: those of the checkpoint, whose file has others."""
    need("timm")
    import timm

    from minift.formats.efficientnet import size_of
    from minift.formats.huggingface import translate

    if tensors is None:
        table = translate(body, body.TIMM)
        tensors = {table[name]: tensor for name, tensor in checkpoint.tensors.items()}
    head, c = tensors.get("classifier.weight"), body.config
    kind = "tf_" if c.padding == "same" else ""
    network = timm.create_model(
        kind + size_of(c).replace("-", "_"), num_classes=0 if head is None else len(head), bn_eps=c.batch_norm_eps
    )
    network.load_state_dict(tensors)
    return "timm", timm.__version__, network, network


def need(library: str) -> None:
    """Raises UserError where --check has nothing to compare with."""
    if importlib.util.find_spec(library) is None:
        install = 'pip install -e ".[test]"' if is_checkout() else f"pip install {library}"
        raise UserError(f"--check compares with {library}, which is not installed: {install}")


def every_token(state):
    """A batch for a head: of masked-lm every token is one that was masked."""
    import torch

    from minift.data.batching import Batch

    tokens = getattr(state, "tokens", None)
    if tokens is None:
        return Batch((), (), None, None)
    return Batch((), (torch.arange(tokens.shape[1]).expand_as(tokens), tokens), None, None)


def outputs_of(output):
    """(B, outputs) or (B, S, outputs) of transformers' or torchvision's model; of question answering start and end side by side."""
    import torch

    if isinstance(output, torch.Tensor):
        return output
    return torch.stack([output.start_logits, output.end_logits], -1) if "start_logits" in output else output.logits


def random_texts(config) -> tuple:
    """(what they are, inputs of the library's model, of minift's, which positions are compared)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    length = min(64, config.max_length)
    tokens = torch.randint(config.vocab_size, (4, length), generator=generator)
    mask = torch.arange(length) < torch.tensor([length, length // 2, length // 4, 3])[:, None]
    types = (torch.arange(length) >= length // 3).long().expand_as(tokens)
    types = types % kinds if (kinds := getattr(config, "type_vocab_size", 0)) else None
    if types is None:  # transformers' classifier finds the last token by the id of padding
        pad = config.pad_token_id
        tokens = tokens.masked_fill(tokens == pad, (pad + 1) % config.vocab_size).masked_fill(~mask, pad)
    inputs = {"input_ids": tokens, "attention_mask": mask.long(), **({} if types is None else {"token_type_ids": types})}
    return f"4 rows of up to {length} tokens", inputs, (tokens, mask, types), mask


def random_images(body) -> tuple:
    """The same of images; not square, so that height and width cannot change places unseen.

    Of an EfficientNet as high as its pictures, as transformers fixes the padding by that, and 32 less wide, which changes none.
    """
    import torch

    size = getattr(body.config, "image_size", 96)
    shape = (2, body.stem.conv.in_channels, size, max(size % 32 or 32, size - 32))
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return f"2 images of {shape[2]} x {shape[3]}", (images,), (images,), ...


FILES = ("torchvision", "timm")  # of which one file is written
ADDED = {"peft": export_to_peft, "adapters": export_to_adapters}
EXPORTS = {"hf": export_to_hf, **{name: partial(export_to_file, library=name) for name in FILES}, "minift": export_to_minift}

if __name__ == "__main__":
    command(main, "convert")
