"""minift.formats.adapters against the adapters library: it loads what is written here, and the other way round."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from tiny import CONFIG, converted_directory, tiny_body, tiny_gpt2
from torch import Tensor, nn
from twins import bert, close, gpt2, texts

import minift
from minift import pretrained
from minift.adapting import adapt
from minift.errors import UserError
from minift.formats.adapters import KINDS, names, read, read_run, reduction_to, shapes, write
from minift.formats.heads import HEADS, class_of
from minift.formats.huggingface import to_huggingface
from minift.methods.houlsby import size_of
from minift.methods.surgery import delta, load_delta
from minift.models.resnet import ResNetConfig
from minift.tasks import TASKS

adapters = pytest.importorskip("adapters")  # which has no release for the newest transformers

LABELS = ["bad", "so so", "good"]
SPECS = {
    "houlsby:size=4,activation=gelu,norms=False": ("houlsby", 4, "gelu"),
    "houlsby:size=21,activation=swish,norms=False": ("houlsby", 21, "swish"),
    "houlsby:reduction=3,activation=relu,norms=False": ("houlsby", 5, "relu"),
    "pfeiffer": ("pfeiffer", 1, "relu"),
    "pfeiffer:size=6,activation=tanh,init=bert": ("pfeiffer", 6, "tanh"),
}


@pytest.fixture(autouse=True)
def in_float64():
    """The library makes and fills its bottlenecks in torch's default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def static(body: nn.Module, labels: int = len(LABELS)) -> nn.Module:
    """transformers' classifier on the weights of a plain body, ready for adapters; its head is random."""
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**vars(body.config), num_labels=labels)).double()
    weights = {name: tensor.detach().clone() for name, tensor in body.state_dict().items()}
    assert not model.load_state_dict(to_huggingface(weights, body, "bert."), strict=False).unexpected_keys
    adapters.init(model)
    return model.eval()


def flexible(body: nn.Module) -> nn.Module:
    """adapters' own model on the same weights, without a head."""
    model = adapters.BertAdapterModel(transformers.BertConfig(**vars(body.config))).double()
    weights = {name: tensor.detach().clone() for name, tensor in body.state_dict().items()}
    assert not model.load_state_dict(to_huggingface(weights, body, "bert."), strict=False).unexpected_keys
    return model.eval()


def base_only(body: nn.Module) -> nn.Module:
    return static(body).bert


def logits_there(model: nn.Module) -> Tensor:
    tokens, mask, types = texts()
    return model.eval()(tokens, mask.long(), types).logits


def logits_here(spec: str, grafts: dict[str, Tensor], head: dict[str, Tensor]) -> Tensor:
    body = bert()
    adapt(body, spec)
    load_delta(body, grafts)
    return nn.functional.linear(body.eval()(*texts()).pooled, head["weight"], head["bias"])


def learned(spec: str, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(grafts, head) of a run, random."""
    body = bert()
    adapt(body, spec)
    generator = torch.Generator().manual_seed(2)
    grafts = {name: torch.randn(t.shape, generator=generator, dtype=dtype) * 0.3 for name, t in delta(body).items()}
    head = {
        "weight": torch.randn(3, 16, generator=generator, dtype=dtype),
        "bias": torch.randn(3, generator=generator, dtype=dtype),
    }
    return grafts, head


def written(directory: Path, spec: str = "pfeiffer:size=4", with_head: bool = True) -> Path:
    grafts, head = learned(spec)
    write(directory, spec, CONFIG, grafts, head if with_head else {}, LABELS, "cls", "tiny")
    return directory


def saved(directory: Path, config=None, build=static, safe: bool = False) -> tuple[Path, nn.Module]:
    """A directory of the library's own, with random weights, and the model that it is of."""
    model = build(bert())
    model.add_adapter("mine", config=config or adapters.SeqBnConfig(reduction_factor=4), set_active=True)
    if build is flexible:
        numbered = dict(enumerate(LABELS))
        model.add_classification_head("mine", 3, layers=1, activation_function=None, id2label=numbered, use_pooler=True)
    generator = torch.Generator().manual_seed(2)
    for name, p in model.named_parameters():
        if ".mine." in name or name.startswith("classifier."):
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3
    directory.mkdir()
    model.save_adapter(str(directory), "mine", use_safetensors=safe)
    return directory, model


def edit(path: Path, **changes) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def edit_fields(directory: Path, **changes) -> None:
    path = directory / "adapter_config.json"
    edit(path, config=json.loads(path.read_text())["config"] | changes)


def refused(directory: Path, *parts: str) -> None:
    """One line, with all of these in it."""
    with pytest.raises(UserError) as error:
        read(directory)
    line = str(error.value)
    assert "\n" not in line
    assert all(part in line for part in (directory.name, *parts)), line


# ---- out ----


@pytest.mark.parametrize("build", [static, flexible])
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_the_library_loads_what_is_written(tmp_path, spec, safe, build):
    grafts, head = learned(spec)
    write(tmp_path / "out", spec, CONFIG, grafts, head, LABELS, "cls", "tiny")
    model, info = build(bert()), {}
    name = model.load_adapter(str(tmp_path / "out"), set_active=True, use_safetensors=safe, loading_info=info)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    close(logits_here(spec, grafts, head), logits_there(model), "logits")
    numbered = model.heads[name].config["label2id"] if build is flexible else model.config.label2id
    assert numbered == {label: i for i, label in enumerate(LABELS)}


@pytest.mark.parametrize("spec", SPECS)
def test_out_and_in_again_bit_for_bit(tmp_path, spec):
    grafts, head = learned(spec, torch.float32)
    write(tmp_path / "out", spec, CONFIG, grafts, head, LABELS, "cls", "tiny")
    method, grafts_again, head_again, labels, base = read(tmp_path / "out")
    name, size, activation = SPECS[spec]
    assert method == f"{name}:size={size},activation={activation}" + ",norms=False" * (name == "houlsby")
    assert (labels, base) == (LABELS, "tiny")
    for before, again in ((grafts, grafts_again), (head, head_again)):
        assert before.keys() == again.keys() and all(torch.equal(tensor, again[key]) for key, tensor in before.items())
    body = tiny_body()
    adapt(body, method)
    load_delta(body, grafts_again)


def test_without_a_head(tmp_path):
    assert sorted(path.name for path in written(tmp_path / "out", with_head=False).iterdir()) == [
        "adapter_config.json",
        "pytorch_adapter.bin",
    ]
    assert read(tmp_path / "out")[2:4] == ({}, None)
    base_only(bert()).load_adapter(str(tmp_path / "out"))


@pytest.mark.parametrize("width", [16, 24, 384, 768, 1024])
def test_the_reduction_factor_gives_the_size_back(width):
    for size in range(1, 2 * width + 3):
        assert size_of(width, 0, reduction_to(width, size)) == size == int(width // reduction_to(width, size))


@pytest.mark.parametrize(
    ("method", "changes", "line"),
    [
        ("houlsby", {}, "train with houlsby:norms=False"),
        ("houlsby:size=4,norms=True", {}, "train with houlsby:norms=False"),
        ("lora+pfeiffer", {}, "one method, houlsby or pfeiffer"),
        ("lora:rank=4", {}, "for houlsby or pfeiffer"),
        ("pfeiffer", {"pool": "mean"}, "--pool mean"),
        ("houlsby:norms=False", {"config": ResNetConfig()}, "ResNets"),
        ("pfeiffer", {"grafts": {}}, "12 missing"),
        ("pfeiffer:size=3", {}, "(1, 16)"),
        ("pfeiffer", {"config": replace(CONFIG, num_hidden_layers=2)}, "unexpected"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, method, changes, line):
    grafts, head = learned("pfeiffer")
    given = {"config": CONFIG, "grafts": grafts, "head": head, "labels": LABELS, "pool": "cls", "base_name": "tiny"} | changes
    with pytest.raises(UserError) as error:
        write(tmp_path / "out", method, **given)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


# ---- in ----


@pytest.mark.parametrize("build", [static, flexible])
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (adapters.SeqBnConfig(), "pfeiffer:size=1,activation=relu"),
        (adapters.SeqBnConfig(reduction_factor=3.2, non_linearity="silu"), "pfeiffer:size=4,activation=swish"),
        (adapters.DoubleSeqBnConfig(reduction_factor=2), "houlsby:size=8,activation=swish,norms=False"),
        (adapters.DoubleSeqBnConfig(reduction_factor=0.8, non_linearity="GELU"), "houlsby:size=19,activation=gelu,norms=False"),
        (adapters.SeqBnConfig(reduction_factor={"1": 8, "default": 7.5}), "pfeiffer:size=2,activation=relu"),
    ],
)
def test_in_and_out_again(tmp_path, config, spec, safe, build):
    directory, model = saved(tmp_path / "theirs", config, build, safe)
    method, grafts, head, labels, base = read(directory)
    assert (method, base) == (spec, "")
    assert labels == (LABELS if build is flexible else ["LABEL_0", "LABEL_1", "LABEL_2"])  # transformers' own, if not told any
    expected = logits_there(model)
    close(logits_here(method, grafts, head), expected, "logits here")

    write(tmp_path / "ours", method, CONFIG, grafts, head, LABELS, "cls", base)
    again = build(bert())
    again.load_adapter(str(tmp_path / "ours"), set_active=True)
    close(logits_there(again), expected, "logits there again")


def test_a_base_without_a_head(tmp_path):
    directory, _ = saved(tmp_path / "theirs", build=base_only)
    method, grafts, head, labels, _ = read(directory)
    assert method == "pfeiffer:size=4,activation=relu" and len(grafts) == 12
    assert head == {} and labels is None


def test_all_adapters(tmp_path):
    _, model = saved(tmp_path / "one")
    model.add_adapter("other", config="double_seq_bn")
    model.save_all_adapters(str(tmp_path / "all"))
    refused(tmp_path / "all", "mine, other", "give the directory of one")
    assert read(tmp_path / "all" / "mine")[0] == "pfeiffer:size=4,activation=relu"
    assert read(tmp_path / "all" / "other")[0] == "houlsby:size=1,activation=swish,norms=False"


def test_files_without_a_version_meant_other_activations(tmp_path):
    """As the library reads them: gelu was the approximate one, gelu_orig the exact one."""
    directory = written(tmp_path / "old")
    said = json.loads((directory / "adapter_config.json").read_text())
    del said["version"]
    for old, new in (("gelu_orig", "gelu"), ("tanh", "tanh")):
        said["config"]["non_linearity"] = old
        (directory / "adapter_config.json").write_text(json.dumps(said))
        assert read(directory)[0] == f"pfeiffer:size=4,activation={new}"
        model = static(bert())
        model.load_adapter(str(directory))
        assert model.adapters_config.get("minift")["non_linearity"] == new
    said["config"]["non_linearity"] = "gelu"
    (directory / "adapter_config.json").write_text(json.dumps(said))
    refused(directory, "gelu_new")


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (adapters.ParBnConfig(), ["is_parallel True"]),
        (adapters.CompacterPlusPlusConfig(reduction_factor=4), ["phm_layer True"]),
        (adapters.SeqBnInvConfig(), ["inv_adapter 'nice'"]),
        (adapters.AdapterPlusConfig(original_ln_after=True), ["residual_before_ln False"]),
        (adapters.PrefixTuningConfig(), ["architecture 'prefix_tuning'"]),
        (adapters.LoRAConfig(), ["architecture 'lora'"]),
        (adapters.IA3Config(), ["architecture 'lora'"]),
        (adapters.ConfigUnion(adapters.SeqBnConfig(), adapters.LoRAConfig()), ["architecture 'union'"]),
        (adapters.DoubleSeqBnConfig(output_adapter=False), ["output_adapter False"]),
        (adapters.DoubleSeqBnConfig(original_ln_before=True), ["original_ln_before True", "only False"]),
        (adapters.SeqBnConfig(original_ln_before=False), ["original_ln_before False", "only True"]),
        (adapters.SeqBnConfig(original_ln_after=False, residual_before_ln=False), ["original_ln_after False"]),
        (adapters.SeqBnConfig(ln_before=True), ["ln_before True"]),
        (adapters.SeqBnConfig(ln_after=True), ["ln_after True"]),
        (adapters.SeqBnConfig(residual_before_ln="post_add"), ["residual_before_ln 'post_add'"]),
        (adapters.SeqBnConfig(adapter_residual_before_ln=True), ["adapter_residual_before_ln True"]),
        (adapters.SeqBnConfig(scaling=4.0), ["scaling 4.0"]),
        (adapters.SeqBnConfig(scaling="learned"), ["scaling 'learned'"]),
        (adapters.SeqBnConfig(use_gating=True), ["use_gating True"]),
        (adapters.SeqBnConfig(dropout=0.1), ["dropout 0.1"]),
        (adapters.SeqBnConfig(stochastic_depth=0.1), ["stochastic_depth 0.1"]),
        (adapters.SeqBnConfig(leave_out=[1]), ["leave_out [1]"]),
        (adapters.SeqBnConfig(cross_adapter=True), ["cross_adapter True"]),
        (adapters.SeqBnConfig(non_linearity="leakyrelu"), ["non_linearity is leakyrelu"]),
        (adapters.SeqBnConfig(non_linearity="gelu_new"), ["non_linearity is gelu_new"]),
        (adapters.SeqBnConfig(reduction_factor={"1": 8, "default": 4}), ["does not give 4 channels to every bottleneck"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_the_methods_do_not_express_is_refused(tmp_path, config, parts):
    directory, _ = saved(tmp_path / "theirs", config, static)
    refused(directory, *parts)


def test_every_field_of_a_bottleneck_is_known(tmp_path):
    """A field that the library gains shows here, not in a wrong answer."""
    for config in (adapters.SeqBnConfig(), adapters.DoubleSeqBnConfig()):
        directory, _ = saved(tmp_path / str(config.mh_adapter), config, base_only)
        read(directory)
    edit_fields(directory, twist=2)
    refused(directory, "twist 2", "not known")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"layers": 2}, ["layers 2"]),
        ({"use_pooler": False}, ["use_pooler False"]),
        ({"bias": False}, ["bias False"]),
        ({"head_type": "multiple_choice"}, ["head_type 'multiple_choice'"]),
        ({"label2id": {"a": 0, "b": 1}}, ["label2id", "3 labels"]),
        ({"label2id": {"a": 0, "b": 1, "c": 1}}, ["label2id", "3 labels"]),
        ({"label2id": ["a", "b", "c"]}, ["label2id", "3 labels"]),
    ],
)
def test_other_heads_are_refused(tmp_path, changes, parts):
    directory, _ = saved(tmp_path / "theirs", build=flexible)
    path = directory / "head_config.json"
    edit(path, config=json.loads(path.read_text())["config"] | changes)
    refused(directory, *parts)


def test_labels_that_are_not_recorded(tmp_path):
    directory = written(tmp_path / "out")
    edit(directory / "head_config.json", label2id=None)
    _, _, head, labels, _ = read(directory)
    assert labels is None and len(head["bias"]) == 3


def test_heads_of_other_classes_are_refused(tmp_path):
    directory = written(tmp_path / "out")
    edit(directory / "head_config.json", model_class="BertForMultipleChoice")
    refused(directory, "model_class 'BertForMultipleChoice'", "BertForTokenClassification", "with_head=False")


# ---- bad input ----


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda d: (d / "adapter_config.json").unlink(), ["adapter_config.json", "no such file"]),
        (lambda d: (d / "adapter_config.json").write_text("{"), ["adapter_config.json", "not valid JSON"]),
        (lambda d: (d / "adapter_config.json").write_bytes(b"\xff\xfe"), ["adapter_config.json", "not valid JSON"]),
        (lambda d: (d / "adapter_config.json").write_text("[1]"), ["adapter_config.json", "not a JSON object"]),
        (lambda d: edit(d / "adapter_config.json", model_type="roberta"), ["'roberta'"]),
        (lambda d: edit(d / "adapter_config.json", config="pfeiffer"), ["config 'pfeiffer'"]),
        (lambda d: edit(d / "adapter_config.json", name=None), ["name None"]),
        (lambda d: edit(d / "adapter_config.json", name="other"), ["adapters.other.", "missing"]),
        (lambda d: edit(d / "adapter_config.json", hidden_size=32), ["width 16", "32"]),
        (lambda d: edit_fields(d, reduction_factor=2), ["reduction_factor 2", "4 channels"]),
        (lambda d: edit_fields(d, reduction_factor="4"), ["reduction_factor", "a number above 0"]),
        (lambda d: edit_fields(d, reduction_factor=0), ["reduction_factor", "a number above 0"]),
        (lambda d: edit_fields(d, reduction_factor={"0": 4}), ["reduction_factor", "a number above 0"]),
        (lambda d: edit_fields(d, mh_adapter=True, original_ln_before=False), ["attention", "missing"]),
        (lambda d: (d / "pytorch_adapter.bin").unlink(), ["no adapter.safetensors and no pytorch_adapter.bin"]),
        (lambda d: cut(d / "pytorch_adapter.bin"), ["pytorch_adapter.bin", "cut short"]),
        (lambda d: (d / "pytorch_adapter.bin").rename(d / "adapter.safetensors"), ["adapter.safetensors", "no safetensors file"]),
        (lambda d: torch.save([1], d / "pytorch_adapter.bin"), ["not a dictionary of tensors"]),
        (lambda d: (d / "head_config.json").unlink(), ["pytorch_model_head.bin", "no head_config.json"]),
        (lambda d: (d / "head_config.json").write_text("nope"), ["head_config.json", "not valid JSON"]),
        (lambda d: (d / "pytorch_model_head.bin").unlink(), ["no model_head.safetensors and no pytorch_model_head.bin"]),
        (lambda d: cut(d / "pytorch_model_head.bin"), ["pytorch_model_head.bin", "cut short"]),
    ],
)
def test_bad_files(tmp_path, spoil, parts):
    directory = written(tmp_path / "out")
    spoil(directory)
    refused(directory, *parts)


@pytest.mark.parametrize("file", ["pytorch_adapter.bin", "pytorch_model_head.bin"])
def test_every_tensor_is_wanted_and_no_other(tmp_path, file):
    directory = written(tmp_path / "out")
    tensors = torch.load(directory / file)
    for name, tensor in tensors.items():
        torch.save({other: t for other, t in tensors.items() if other != name}, directory / file)
        refused(directory, file, "missing")
        torch.save(tensors | {name: tensor[..., 1:]}, directory / file)
        refused(directory, "")
    for name in ("bert.encoder.layer.0.output.adapters.minift.gate.weight", "bert.encoder.layer.3.output.dense.weight", "x"):
        torch.save(tensors | {name: torch.zeros(1)}, directory / file)
        refused(directory, file, "unexpected" if "3" not in name else "")
    torch.save(tensors, directory / file)
    read(directory)


def test_no_directory(tmp_path):
    refused(tmp_path / "nowhere", "no such file")


def test_the_maps_name_what_the_methods_add():
    for spec in SPECS:
        body = tiny_body()
        adapt(body, spec)
        kind, size, _ = SPECS[spec]
        expected = shapes(names(KINDS[kind], 3, "any"), 16, size)
        assert {name: t.shape for name, t in delta(body).items()} == {name: t.shape for name, t in expected.items()}


# ---- heads of other tasks ----

ROWS = {"text-regression": 1, "question-answering": 2, "token-classification": 3, "multi-label-classification": 3}
OTHERS = [task for task in ROWS if task in TASKS]
CLASSES = {task: f"BertFor{HEADS[task].kind}" for task in OTHERS}
TAGS = ["O", "B-X", "I-X"]
MAKE = {
    "text-regression": ("add_classification_head", {"num_labels": 1, "use_pooler": True}),
    "multi-label-classification": ("add_classification_head", {"num_labels": 3, "use_pooler": True, "multilabel": True}),
    "token-classification": ("add_tagging_head", {"num_labels": 3, "id2label": dict(enumerate(TAGS))}),
    "question-answering": ("add_qa_head", {"num_labels": 2}),
}


def static_for(task: str, body: nn.Module) -> nn.Module:
    """transformers' class of the task on the weights of a plain body, ready for adapters."""
    model = getattr(transformers, CLASSES[task])(transformers.BertConfig(**vars(body.config), num_labels=ROWS[task])).double()
    pooled = "SequenceClassification" in CLASSES[task]
    weights = {name: t.detach().clone() for name, t in body.state_dict().items() if pooled or not name.startswith("pooler.")}
    assert not model.load_state_dict(to_huggingface(weights, body, "bert."), strict=False).unexpected_keys
    adapters.init(model)
    return model.eval()


def outputs_there(model: nn.Module) -> Tensor:
    tokens, mask, types = texts()
    made = model.eval()(tokens, mask.long(), types)
    return torch.stack([made.start_logits, made.end_logits], -1) if "start_logits" in made else made.logits


def outputs_here(spec: str, task: str, grafts: dict[str, Tensor], head: dict[str, Tensor]) -> Tensor:
    body = bert()
    adapt(body, spec)
    load_delta(body, grafts)
    state = body.eval()(*texts())
    read_from = state.pooled if "SequenceClassification" in CLASSES[task] else state.hidden
    return nn.functional.linear(read_from, head["weight"], head["bias"])


def assert_outputs(ours: Tensor, theirs: Tensor) -> None:
    mask = texts()[1]
    assert ours.shape == theirs.shape
    close(ours[mask] if ours.ndim == 3 else ours, theirs[mask] if ours.ndim == 3 else theirs, "outputs")


@pytest.mark.parametrize("build", ["static", "flexible"])
@pytest.mark.parametrize("task", OTHERS)
def test_heads_of_other_tasks_go_out_and_in_again(tmp_path, task, build):
    spec = "pfeiffer:size=4"
    grafts, head = learned(spec)
    head = {name: tensor[: ROWS[task]] for name, tensor in head.items()}
    labels, pool = (TAGS, None) if task == "token-classification" else (LABELS[: ROWS[task]], "cls")
    write(tmp_path / "out", spec, CONFIG, grafts, head, labels, pool, "tiny", task=task)
    model, info = static_for(task, bert()) if build == "static" else flexible(bert()), {}
    model.load_adapter(str(tmp_path / "out"), set_active=True, loading_info=info)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_outputs(outputs_here(spec, task, grafts, head), outputs_there(model))
    _, grafts_again, head_again, labels_again, _ = read(tmp_path / "out")
    for before, again in ((grafts, grafts_again), (head, head_again)):
        assert before.keys() == again.keys() and all(torch.equal(tensor, again[key]) for key, tensor in before.items())
    assert labels_again == (None if task == "question-answering" else labels)


@pytest.mark.parametrize("build", ["static", "flexible"])
@pytest.mark.parametrize("task", OTHERS)
def test_heads_of_other_tasks_that_the_library_has_saved(tmp_path, task, build):
    body = bert()
    model = static_for(task, body) if build == "static" else flexible(body)
    model.add_adapter("mine", config=adapters.SeqBnConfig(reduction_factor=4), set_active=True)
    if build == "flexible":
        add, options = MAKE[task]
        getattr(model, add)("mine", layers=1, **options)
    elif task == "token-classification":
        model.config.id2label, model.config.label2id = dict(enumerate(TAGS)), {tag: i for i, tag in enumerate(TAGS)}
    generator = torch.Generator().manual_seed(2)
    for name, p in model.named_parameters():
        if ".mine." in name or name.startswith(("classifier.", "qa_outputs.")):
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3
    model.save_adapter(str(tmp_path / "theirs"), "mine")
    base = converted_directory(tmp_path / "base", bert().float())
    run = read_run(tmp_path / "theirs", str(base), TAGS if task == "token-classification" and build == "static" else None)
    # a class of transformers' own does not say which loss it was trained with
    named = "text-classification" if (task, build) == ("multi-label-classification", "static") else task
    assert run.task["name"] == named and len(run.head["weight"]) == ROWS[task]
    if task == "token-classification":
        assert run.task["labels"] == TAGS
    assert_outputs(outputs_here(run.method, task, run.grafts, run.head), outputs_there(model))
    pretrained.write(tmp_path / "run", run)
    assert minift.load(tmp_path / "run", "cpu").task.pool == (None if "SequenceClassification" not in CLASSES[task] else "cls")


def test_masked_lm_is_refused(tmp_path):
    grafts, head = learned("pfeiffer:size=4")
    with pytest.raises(UserError, match="masked-lm: its head is not written for the adapters library"):
        write(tmp_path / "out", "pfeiffer:size=4", CONFIG, grafts, head, [], None, "tiny", task="masked-lm")
    directory, _ = saved(tmp_path / "theirs", build=flexible)
    edit(directory / "head_config.json", config={"head_type": "masked_lm", "layers": 2})
    refused(directory, "head_type 'masked_lm'", "with_head=False")


# ---- GPT-2 ----

GPT2_TASKS = ["text-classification", "text-regression", "multi-label-classification", "token-classification"]


@pytest.mark.parametrize("spec", ["pfeiffer:size=4", "houlsby:size=3,activation=swish,norms=False"])
@pytest.mark.parametrize("task", [*GPT2_TASKS, "causal-lm"])
def test_a_gpt2_goes_out_and_in_again(tmp_path, task, spec):
    def body_of() -> nn.Module:
        return gpt2() if "token" not in task and task != "causal-lm" else tiny_gpt2(pool=None).double()

    rows = ROWS.get(task, 3)
    plain = body_of()
    config = transformers.GPT2Config(**vars(plain.config), num_labels=rows)
    weights = {name: tensor.detach().clone() for name, tensor in plain.state_dict().items()}
    model = getattr(transformers, class_of("GPT2", HEADS[task]))(config).double()
    assert not model.load_state_dict(to_huggingface(weights, plain, "transformer."), strict=False).unexpected_keys
    adapters.init(model)

    body = body_of()
    adapt(body, spec)
    generator = torch.Generator().manual_seed(2)
    grafts = {name: torch.randn(t.shape, generator=generator, dtype=torch.float64) * 0.3 for name, t in delta(body).items()}
    load_delta(body, grafts)
    body.eval()
    head = {"weight": torch.randn(rows, 16, generator=generator, dtype=torch.float64)}
    head |= {"bias": torch.randn(rows, generator=generator, dtype=torch.float64)} if task == "token-classification" else {}
    head = {} if task == "causal-lm" else head
    write(
        tmp_path / "out", spec, body.config, grafts, head, [str(i) for i in range(rows)], plain.pooler and "last", "tiny", task=task
    )
    info = {}
    model.load_adapter(str(tmp_path / "out"), set_active=True, loading_info=info)
    assert not info.get("missing_keys") and not info.get("unexpected_keys")

    tokens, mask, _ = texts()
    tokens = tokens.masked_fill(~mask, body.config.pad_token_id)
    made = model.eval()(input_ids=tokens, attention_mask=mask.long()).logits
    state = body(tokens, mask)
    if task == "causal-lm":
        close((state.hidden @ body.embeddings.word.weight.T)[mask], made[mask], "logits")
    else:
        read_from = state.hidden if state.pooled is None else state.pooled
        assert_outputs(nn.functional.linear(read_from, head["weight"], head.get("bias")), made)
    method, grafts_again, head_again, _, _ = read(tmp_path / "out")
    assert method.partition(":")[0] == spec.partition(":")[0] and head_again.keys() == head.keys()
    for before, again in ((grafts, grafts_again), (head, head_again)):
        assert before.keys() == again.keys() and all(torch.equal(tensor, again[name]) for name, tensor in before.items())
