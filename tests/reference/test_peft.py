"""minift.formats.peft against peft: it loads what is written here, and the other way round."""

import json
import shutil
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import peft
import pytest
import torch
import transformers
from contract.tasks import converted_gpt2
from safetensors.torch import load_file, save_file
from test_train import run
from tiny import converted_directory, converted_resnet, photographs, tiny_body, tiny_resnet
from torch import Tensor, nn
from twins import close, images, needs_past_key_values, texts

import minift
import train
from minift import pretrained
from minift.adapting import adapt
from minift.data.layout import ImageLayout, TextLayout
from minift.errors import UserError
from minift.formats import huggingface
from minift.formats.bases import BESIDE
from minift.formats.heads import HEADS
from minift.formats.peft import CONFIG, TIED, is_peft, read, write
from minift.methods.surgery import delta
from minift.pretrained import Checkpoint, sha256
from minift.tasks import TASKS as ALL_TASKS
from minift.tasks.masked_lm import word_vectors
from minift.tasks.task import task_from

LABELS = ["bad", "so so", "good"]
SETTINGS = {"batch_size": 4, "precision": "float32", "frozen": 0, "layout": asdict(TextLayout())}
WEIGHTS = "adapter_model.safetensors"
CLASSES = {
    "bert": "BertForSequenceClassification",
    "gpt2": "GPT2ForSequenceClassification",
    "resnet": "ResNetForImageClassification",
}
POOLS = {"bert": "cls", "gpt2": "last", "resnet": "mean"}
TASKS = {"bert": "text-classification", "gpt2": "text-classification", "resnet": "image-classification"}
LAYOUTS = {
    "bert": asdict(TextLayout()),
    "gpt2": asdict(TextLayout()),
    "resnet": {k: v for k, v in asdict(ImageLayout()).items() if k != "workers"},
}


def task_of(architecture: str, labels: list[str], max_length: int, pairs: bool) -> dict:
    task = {"name": TASKS[architecture], "labels": labels, "pool": POOLS[architecture]}
    return task | ({"max_length": max_length, "pairs": pairs} if architecture != "resnet" else {})


PAD = 256  # of the GPT-2, by which transformers' classifier finds the last token


def texts_of_gpt2() -> tuple[Tensor, Tensor]:
    tokens, mask, _ = texts()
    return tokens.masked_fill(~mask, PAD), mask


INPUTS = {"bert": texts, "gpt2": texts_of_gpt2, "resnet": images}


@pytest.fixture(autouse=True)
def in_float64():
    """peft makes the embeddings of prefixes and prompts in torch's default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    """bert, gpt2 and resnet in minift's layout, bert-hf, gpt2-hf and resnet-hf in transformers'."""
    place = tmp_path_factory.mktemp("bases")
    converted_directory(place / "bert", tiny_body(layer_norm_eps=1e-3).float())
    converted_gpt2(place / "gpt2")
    converted_resnet(place / "resnet", tiny_resnet().float())
    for name in CLASSES:
        huggingface.write(place / f"{name}-hf", pretrained.read(place / name))
        edit(place / name / "config.json", source=str(place / f"{name}-hf"))
    return place


def plain_there(bases: Path, architecture: str, labels: int = len(LABELS)) -> nn.Module:
    transformers.logging.set_verbosity_error()
    loaded = getattr(transformers, CLASSES[architecture])
    return loaded.from_pretrained(bases / f"{architecture}-hf", num_labels=labels, dtype=torch.float64).eval()


def learned(bases: Path, architecture: str, method: str, dtype: torch.dtype = torch.float64) -> Checkpoint:
    """A run as it is read, with random weights."""
    origin = pretrained.read(bases / architecture)
    body = origin.body(POOLS[architecture], dtype)
    adapt(body, method)
    generator = torch.Generator().manual_seed(2)

    def random(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(dtype) * 0.3

    around = ("m", "scale")
    grafts = {name: t.detach() * (1 + random(t)) if name.endswith(around) else random(t) for name, t in delta(body).items()}
    return replace(
        origin,
        base=sha256(bases / architecture / "model.safetensors"),
        base_name=str(bases / architecture),
        method=method,
        delta=True,
        task=task_of(architecture, LABELS, 9, True),
        settings=SETTINGS | {"layout": LAYOUTS[architecture]},
        head={"weight": random(torch.empty(3, origin.width))}
        | ({} if architecture == "gpt2" else {"bias": random(torch.empty(3))}),
        grafts=grafts,
        origin=origin,
    )


def logits_here(checkpoint: Checkpoint) -> Tensor:
    body = checkpoint.tuned_body(torch.float64).eval()
    head = {name: tensor.double() for name, tensor in checkpoint.head.items()}
    return nn.functional.linear(body(*INPUTS[checkpoint.architecture]()).pooled, head["weight"], head.get("bias"))


def logits_there(model: nn.Module) -> Tensor:
    model.eval()
    if model.config.model_type == "resnet":
        return model(pixel_values=images()[0]).logits
    if model.config.model_type == "gpt2":
        tokens, mask = texts_of_gpt2()
        return model(input_ids=tokens, attention_mask=mask.long()).logits
    tokens, mask, types = texts()
    return model(tokens, mask.long(), token_type_ids=types).logits


def loaded_there(bases: Path, architecture: str, directory: Path) -> nn.Module:
    """As a user of peft does it; a warning is an error."""
    plain = plain_there(bases, architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # peft 0.21's own call of transformers 5
        return peft.PeftModel.from_pretrained(plain, str(directory))


def saved(
    directory: Path, bases: Path, config, architecture: str = "bert", safe: bool = True, labels: int = len(LABELS)
) -> nn.Module:
    """peft's model with random weights; it has been saved into the directory."""
    model = peft.get_peft_model(plain_there(bases, architecture, labels), config)
    generator = torch.Generator().manual_seed(2)
    for name, p in model.named_parameters():
        if p.requires_grad:
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3
            p.data = p.data * (1 + noise) if "magnitude" in name or "ia3_l" in name else noise
    model.save_pretrained(str(directory), safe_serialization=safe)
    return model


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refused(call, *parts: str) -> None:
    """One line, with all of these in it."""
    with pytest.raises(UserError) as error:
        call()
    line = str(error.value)
    assert "\n" not in line
    assert all(part in line for part in parts), line


# ---- out ----

OUT = {
    "bert": [
        "lora:rank=2",
        r"lora:rank=3,alpha=5,dropout=0.1,rslora=true,sites=query/feed_forward_hidden/pooler\.dense",
        r"lora:rank=2,alpha=0.5,sites=word/embeddings\.position/layers\.1\.attention\.output",
        "dora:rank=2",
        r"dora:rank=3,alpha=4,rslora=true,dropout=0.2,sites=key/feed_forward_output/pooler\.dense",
        "ia3",
        "ia3:sites=peft",
        r"ia3:sites=query/layers\.1\.feed_forward\.output",
        "ia3:sites=query",
        "prefix:length=5,shift=true",
        "prefix:length=3,shift=true,mlp=7",
        "prompt:length=4,pooler=all",
    ],
    "gpt2": [
        "lora:rank=2",
        r"lora:rank=3,alpha=5,dropout=0.1,rslora=true,sites=word/attention_output/layers\.1\.feed_forward\.hidden",
        "dora:rank=2",
        "dora:rank=3,alpha=4,sites=qkv/feed_forward_output",
        "ia3",
        "prefix:length=5,shift=true",
    ],
    "resnet": [
        "lora:rank=2",
        r"lora:rank=3,alpha=4,rslora=true,dropout=0.1,sites=stem\.conv/conv1/shortcut",
        "dora:rank=2",
        r"dora:rank=3,alpha=4,sites=stem\.conv/conv3/blocks\.2\.shortcut\.conv",
    ],
}
ALL = [(architecture, method) for architecture, methods in OUT.items() for method in methods]


@pytest.mark.parametrize(("architecture", "method"), ALL)
def test_peft_loads_what_is_written(tmp_path, bases, architecture, method):
    needs_past_key_values(method)
    checkpoint = learned(bases, architecture, method)
    write(tmp_path / "out", checkpoint)
    assert is_peft(tmp_path / "out")
    model = loaded_there(bases, architecture, tmp_path / "out")
    expected = logits_there(model)
    close(logits_here(checkpoint), expected, "logits")
    with torch.no_grad():
        assert (logits_here(replace(checkpoint, grafts={})) - expected).abs().max() > 1e-3

    model.save_pretrained(str(tmp_path / "again"))
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("out", "again"))
    assert ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    said, again = (json.loads((tmp_path / name / CONFIG).read_text()) for name in ("out", "again"))
    for field in said.keys() - {"modules_to_save", "target_modules", "feedforward_modules"}:
        assert said[field] == again[field], field


@pytest.mark.parametrize(("architecture", "method"), ALL)
def test_out_and_in_again_bit_for_bit(tmp_path, bases, architecture, method):
    checkpoint = learned(bases, architecture, method, torch.float32)
    write(tmp_path / "out", checkpoint)
    again = read(tmp_path / "out", None)
    same = ("architecture", "config", "base", "base_name", "delta", "task", "settings", "preprocessing", "source")
    assert {name: getattr(again, name) for name in same} == {name: getattr(checkpoint, name) for name in same}
    assert again.tokenizer is again.origin.tokenizer and (again.tokenizer is None) == (architecture == "resnet")
    for before, after in (("tensors", "tensors"), ("head", "head"), ("grafts", "grafts")):
        before, after = getattr(checkpoint, before), getattr(again, after)
        if "mlp" not in method or before is not checkpoint.grafts:
            assert before.keys() == after.keys() and all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    write(tmp_path / "second", again)
    tensors = [(tmp_path / name / WEIGHTS).read_bytes() for name in ("out", "second")]
    assert tensors[0] == tensors[1]
    if "mlp" not in method:
        assert (tmp_path / "out" / CONFIG).read_bytes() == (tmp_path / "second" / CONFIG).read_bytes()


@pytest.mark.parametrize(
    ("method", "changes", "parts"),
    [
        ("lora+ia3", {}, ["lora+ia3", "one of lora, dora, ia3, prefix, prompt", "--to hf"]),
        ("lora+lora:sites=key", {}, ["one of lora, dora, ia3, prefix, prompt"]),
        ("houlsby:size=2", {}, ["houlsby:size=2", "--to hf"]),
        ("bitfit", {}, ["bitfit", "--to hf"]),
        ("prefix:length=3", {}, ["prefix:shift=true"]),
        ("prefix:length=3,shift=true,mlp=5", {"tensors": None}, ["has no pooler"]),
        ("prompt:length=3", {}, ["prompt:pooler=all"]),
        ("lora", {"task": task_of("bert", LABELS, 9, True) | {"pool": "mean"}}, ["pool=mean", "--pool cls"]),
        ("lora", {"delta": False, "origin": None}, ["no base", "--init random"]),
        ("lora", {"task": None}, ["a plain model"]),
        ("lora", {"method": None}, ["a plain model"]),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, bases, method, changes, parts):
    checkpoint = learned(bases, "bert", method)
    if changes.get("tensors", 0) is None:
        changes = {"tensors": {name: t for name, t in checkpoint.tensors.items() if not name.startswith("pooler.")}}
    refused(lambda: write(tmp_path / "out", replace(checkpoint, **changes)), *parts)
    assert not (tmp_path / "out").exists()


# ---- in ----

LORA = {"task_type": "SEQ_CLS", "r": 2}
IN = {
    "lora": (peft.LoraConfig(**LORA), "lora:rank=2,alpha=8.0,dropout=0.0,rslora=false,sites=query/value"),
    "rslora and dropout": (
        peft.LoraConfig(**LORA | {"r": 3}, lora_alpha=5, use_rslora=True, lora_dropout=0.1, target_modules=["attention.self.key"]),
        "lora:rank=3,alpha=5.0,dropout=0.1,rslora=true,sites=key",
    ),
    "pattern": (
        peft.LoraConfig(**LORA, target_modules=r".*\.1\..*(query|dense)", exclude_modules=["intermediate.dense"]),
        "lora:rank=2,alpha=8.0,dropout=0.0,rslora=false,sites="
        r"layers\.1\.attention\.query/layers\.1\.attention\.output/layers\.1\.feed_forward\.output",
    ),
    "some layers": (
        peft.LoraConfig(**LORA, target_modules=["query", "pooler.dense"], layers_to_transform=[0, 2]),
        r"lora:rank=2,alpha=8.0,dropout=0.0,rslora=false,sites=layers\.0\.attention\.query/layers\.2\.attention\.query",
    ),
    "one layer": (
        peft.LoraConfig(**LORA, target_modules=["value"], layers_to_transform=1, layers_pattern="layer"),
        r"lora:rank=2,alpha=8.0,dropout=0.0,rslora=false,sites=layers\.1\.attention\.value",
    ),
    "all linear": (
        peft.LoraConfig(**LORA, target_modules="all-linear", exclude_modules=r".*\.pooler\..*"),
        "lora:rank=2,alpha=8.0,dropout=0.0,rslora=false,sites=query/key/value/attention_output/feed_forward_hidden/feed_forward_output",
    ),
    "embeddings": (
        peft.LoraConfig(**LORA, target_modules=["word_embeddings", "token_type_embeddings", "key"], init_lora_weights="gaussian"),
        r"lora:rank=2,alpha=8.0,dropout=0.0,rslora=false,sites=word/key/embeddings\.token_type",
    ),
    "without a task_type": (
        peft.LoraConfig(r=2, modules_to_save=["classifier"]),
        "lora:rank=2,alpha=8.0,dropout=0.0,rslora=false,sites=query/value",
    ),
    "dora": (
        peft.LoraConfig(**LORA, use_dora=True, target_modules=["query", "output.dense"], lora_dropout=0.2),
        "dora:rank=2,alpha=8.0,dropout=0.2,rslora=false,sites=query/attention_output/feed_forward_output",
    ),
    "ia3": (peft.IA3Config(task_type="SEQ_CLS"), "ia3:sites=key/value/attention_output/feed_forward_output"),
    "ia3 by patterns": (
        peft.IA3Config(task_type="SEQ_CLS", target_modules=r".*(key|value)|.*\d\.output\.dense", feedforward_modules=r".*\.dense"),
        "ia3:sites=key/value/feed_forward_output",
    ),
    "ia3 of outputs": (
        peft.IA3Config(task_type="SEQ_CLS", target_modules=["intermediate.dense"], feedforward_modules=[]),
        "ia3:sites=feed_forward_hidden",
    ),
    "prefix": (peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5), "prefix:length=5,shift=true"),
    "projected prefix": (
        peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=7),
        "prefix:length=4,shift=true",
    ),
    "prompt": (peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5), "prompt:length=5,pooler=all"),
    "prompt of words": (
        peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2, prompt_tuning_init="SAMPLE_VOCAB"),
        "prompt:length=2,pooler=all",
    ),
}
IN_GPT2 = {
    "lora": (peft.LoraConfig(**LORA, fan_in_fan_out=True), "lora:rank=2,alpha=8.0,dropout=0.0,rslora=false,sites=qkv"),
    "lora at every layer": (
        peft.LoraConfig(**LORA, fan_in_fan_out=True, target_modules=["c_attn", "c_proj", "c_fc"]),
        "lora:rank=2,alpha=8.0,dropout=0.0,rslora=false,sites=qkv/attention_output/feed_forward_hidden/feed_forward_output",
    ),
    "words": (peft.LoraConfig(**LORA, target_modules=["wte"]), "lora:rank=2,alpha=8.0,dropout=0.0,rslora=false,sites=word"),
    "dora": (
        peft.LoraConfig(**LORA, fan_in_fan_out=True, use_dora=True),
        "dora:rank=2,alpha=8.0,dropout=0.0,rslora=false,sites=qkv",
    ),
    "ia3": (peft.IA3Config(task_type="SEQ_CLS", fan_in_fan_out=True), "ia3:sites=qkv/feed_forward_output"),
    "prefix": (peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5), "prefix:length=5,shift=true"),
}
IN_IMAGES = {
    "lora": (
        peft.LoraConfig(r=2, target_modules=r".*\.layer\.1\.convolution|.*shortcut\.convolution", modules_to_save=["classifier"]),
        None,
    ),
    "lora of 3x3": (
        peft.LoraConfig(r=2, target_modules=r".*\.layer\.1\.convolution", modules_to_save=["classifier"], use_rslora=True),
        "lora:rank=2,alpha=8.0,dropout=0.0,rslora=true,sites=conv2",
    ),
    "dora": (
        peft.LoraConfig(r=2, use_dora=True, target_modules=r".*layer\.0\.convolution", modules_to_save=["classifier"]),
        "dora:rank=2,alpha=8.0,dropout=0.0,rslora=false,sites=conv1",
    ),
}


def compare(directory: Path, bases: Path, architecture: str, config, method: str | None, safe: bool = True) -> None:
    model = saved(directory, bases, config, architecture, safe)
    checkpoint = read(directory, str(bases / architecture))
    if method is not None:
        assert checkpoint.method == method
    task = task_of(architecture, ["LABEL_0", "LABEL_1", "LABEL_2"], checkpoint.task.get("max_length"), False)
    assert checkpoint.task == task
    close(logits_here(checkpoint), logits_there(model), "logits")


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("case", IN)
def test_texts_in(tmp_path, bases, case):
    needs_past_key_values(case)
    compare(tmp_path / "theirs", bases, "bert", *IN[case])


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("case", IN_GPT2)
def test_gpt2_in(tmp_path, bases, case):
    needs_past_key_values(case)
    compare(tmp_path / "theirs", bases, "gpt2", *IN_GPT2[case])


def test_a_prompt_of_gpt2_is_refused_as_its_classifier_reads_padding_there(tmp_path, bases):
    refused(lambda: write(tmp_path / "out", learned(bases, "gpt2", "prompt:length=3")), "takes the last column for the last token")
    saved(tmp_path / "theirs", bases, peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5), "gpt2")
    refused(lambda: read(tmp_path / "theirs", str(bases / "gpt2")), "takes the last column for the last token")


@pytest.mark.parametrize("case", IN_IMAGES)
def test_images_in(tmp_path, bases, case):
    compare(tmp_path / "theirs", bases, "resnet", *IN_IMAGES[case])


def test_bin_files_are_read(tmp_path, bases):
    compare(tmp_path / "theirs", bases, "bert", *IN["lora"], safe=False)
    assert (tmp_path / "theirs" / "adapter_model.bin").is_file()


def test_the_base_is_the_one_that_peft_has_recorded_and_must_be_converted(tmp_path, bases, monkeypatch):
    saved(tmp_path / "theirs", bases, peft.LoraConfig(**LORA))
    edit(tmp_path / "theirs" / CONFIG, base_model_name_or_path="someone/tiny")
    monkeypatch.setenv("MINIFT_WEIGHTS", str(tmp_path / "weights"))
    refused(lambda: read(tmp_path / "theirs", None), "theirs", "someone/tiny", "python convert.py someone/tiny")
    converted = tmp_path / "weights" / "tiny"
    shutil.copytree(bases / "bert", converted)
    edit(converted / "config.json", source="someone/tiny")
    checkpoint = read(tmp_path / "theirs", None)
    assert (checkpoint.base_name, checkpoint.base) == ("someone/tiny", sha256(converted / "model.safetensors"))
    edit(tmp_path / "theirs" / CONFIG, base_model_name_or_path=str(bases / "bert-hf"))
    refused(lambda: read(tmp_path / "theirs", None), "is not converted yet: python convert.py")
    edit(tmp_path / "theirs" / CONFIG, base_model_name_or_path=None)
    refused(lambda: read(tmp_path / "theirs", None), "theirs", "--base")


def test_what_is_usual_of_a_run_that_does_not_say_it(tmp_path, bases):
    for name, config, length in (("lora", peft.LoraConfig(**LORA), 40), ("prompt", IN["prompt"][0], 35)):
        saved(tmp_path / name, bases, config)
        usual = {"batch_size": 32, "precision": "float32", "frozen": 0, "layout": asdict(TextLayout())}
        found = read(tmp_path / name, str(bases / "bert"))
        assert found.settings == usual and (found.task["max_length"], found.task["pairs"]) == (length, False)


# ---- a run of train.py, out, in, and used ----

PREDICTED = ["lora:rank=2", "dora:rank=2", "ia3:sites=peft", "prefix:length=3,shift=true", "prompt:length=3,pooler=all"]


def kept(checkpoint: Checkpoint) -> Checkpoint:
    """As a run keeps it: without what is its base's."""
    return replace(checkpoint, tensors={})


@pytest.mark.parametrize("method", PREDICTED)
def test_predictions_stay(tmp_path, bases, method):
    torch.set_default_dtype(torch.float32)
    directory = run(tmp_path, bases / "bert", method=method, max_length=20, epochs=1)
    write(tmp_path / "peft", pretrained.read(directory / "model"))
    pretrained.write(tmp_path / "back", kept(read(tmp_path / "peft", None)))
    before, after = minift.load(directory), minift.load(tmp_path / "back")
    rows = ["the film was very good", "a bad slow book", "never a good hotel ."]
    assert after.predict(rows) == before.predict(rows)
    assert after.settings == before.settings and after.task == before.task
    assert after.score(after.task.read(str(tmp_path / "rows.csv"), after.layout))[0].metrics["loss"] > 0


def test_predictions_of_images_stay(tmp_path, bases):
    torch.set_default_dtype(torch.float32)
    photographs(tmp_path / "photos", each=6)
    flags = [
        "--task",
        "image-classification",
        "--train",
        str(tmp_path / "photos"),
        "--model",
        str(bases / "resnet"),
        "--epochs",
        "1",
    ]
    train.main([*flags, "--method", "dora:rank=2", "--precision", "float32", "--out", str(tmp_path / "run")])
    write(tmp_path / "peft", pretrained.read(tmp_path / "run" / "model"))
    pretrained.write(tmp_path / "back", kept(read(tmp_path / "peft", None)))
    files = [str(tmp_path / "photos" / name / "0.jpg") for name in ("ants", "bees")]
    assert minift.load(tmp_path / "back").predict(files) == minift.load(tmp_path / "run").predict(files)


# ---- refused ----


@pytest.mark.parametrize("safe", [True, False])
def test_values_that_are_no_numbers(tmp_path, bases, safe):
    saved(tmp_path / "theirs", bases, *IN["lora"][:1])
    tensors = load_file(tmp_path / "theirs" / WEIGHTS)
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name][0, 0] = torch.inf
    if safe:
        save_file(tensors, tmp_path / "theirs" / WEIGHTS)
    else:
        (tmp_path / "theirs" / WEIGHTS).unlink()
        torch.save(tensors, tmp_path / "theirs" / "adapter_model.bin")
    refused(lambda: read(tmp_path / "theirs", str(bases / "bert")), f"{name} holds NaN or infinite values")


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_link_out_of_the_directory(tmp_path, bases, name):
    saved(tmp_path / "theirs", bases, *IN["lora"][:1])
    (tmp_path / "theirs" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "theirs" / name).symlink_to(tmp_path / "elsewhere")
    refused(lambda: read(tmp_path / "theirs", str(bases / "bert")), f"{name}: a symbolic link out of the directory")


Q = "base_model.model.bert.encoder.layer.0.attention.self.query"
REFUSED = {
    "another type": ({"peft_type": "LOHA"}, ["peft_type is 'LOHA'", "LORA, IA3, PREFIX_TUNING, PROMPT_TUNING"]),
    "no type": ({"peft_type": None}, ["peft_type is 'None'"]),
    "another task": ({"task_type": "FEATURE_EXTRACTION"}, ["task_type is 'FEATURE_EXTRACTION'", "'SEQ_CLS'"]),
    "tags without names": ({"task_type": "TOKEN_CLS"}, ["'LABEL_0'", "O among them", "--label-names"]),
    "bias": ({"bias": "lora_only"}, ["bias 'lora_only'", "no biases"]),
    "rank_pattern": ({"rank_pattern": {"query": 4}}, ["rank_pattern", "one rank"]),
    "alpha_pattern": ({"alpha_pattern": {"query": 4}}, ["alpha_pattern", "one alpha"]),
    "fan_in_fan_out": ({"fan_in_fan_out": True}, ["fan_in_fan_out True"]),
    "lora_bias": ({"lora_bias": True}, ["lora_bias True"]),
    "megatron": ({"megatron_config": {"a": 1}}, ["megatron_config"]),
    "layer_replication": ({"layer_replication": [[0, 2]]}, ["layer_replication [[0, 2]]"]),
    "tokens": ({"trainable_token_indices": [1, 2]}, ["trainable_token_indices [1, 2]"]),
    "target_parameters": ({"target_parameters": ["weight"]}, ["target_parameters"]),
    "a later peft's": ({"use_twist": True}, ["use_twist True", "minift has no such thing"]),
    "saved modules": ({"modules_to_save": ["classifier", "pooler"]}, ["modules_to_save has 'pooler'"]),
    "one saved module": ({"modules_to_save": "pooler"}, ["modules_to_save has 'pooler'"]),
    **{
        start: ({"init_lora_weights": start}, [f"init_lora_weights '{start}'", "path_initial_model_for_weight_conversion"])
        for start in ("pissa", "pissa_niter_4", "olora", "loftq", "eva", "corda", "lora_ga")
    },
    "no rank": ({"r": None}, ["r is None"]),
    "a rank of 0": ({"r": 0}, ["rank=0"]),
    "a rank that is none": ({"r": True}, ["r is True"]),
    "dropout of 1": ({"lora_dropout": 1.0}, ["dropout=1"]),
    "no layer": ({"target_modules": ["q_proj"]}, ["target_modules ['q_proj'] names no layer"]),
    "no pattern": ({"target_modules": "(query"}, ["no regular expression"]),
    "targets that are no names": ({"target_modules": [1]}, ["target_modules [1] names no layer"]),
    "more layers": ({"target_modules": ["query", "value", "key"]}, [WEIGHTS, "6 missing", "self.key.lora_A.weight"]),
    "fewer layers": ({"target_modules": ["query"]}, [WEIGHTS, "6 unexpected", "self.value.lora_A.weight"]),
    "another rank": ({"r": 3}, [WEIGHTS, "lora_A.weight", "(2, 16)", "(3, 16)"]),
    "dora": ({"use_dora": True}, [WEIGHTS, "6 missing", "lora_magnitude_vector"]),
}


@pytest.fixture
def directory(tmp_path, bases) -> Path:
    saved(tmp_path / "theirs", bases, peft.LoraConfig(**LORA))
    return tmp_path / "theirs"


@pytest.mark.parametrize("case", REFUSED)
def test_what_minift_does_not_do_is_refused(directory, bases, case):
    changes, parts = REFUSED[case]
    edit(directory / CONFIG, **changes)
    refused(lambda: read(directory, str(bases / "bert")), str(directory), *parts)


TENSORS = {
    "missing": (lambda t: t.pop(f"{Q}.lora_B.weight"), ["1 missing", f"{Q}.lora_B.weight"]),
    "unexpected": (lambda t: t.update({f"{Q}.lora_C": torch.ones(1)}), ["1 unexpected", f"{Q}.lora_C"]),
    "the base's": (lambda t: t.update({f"{Q}.base_layer.bias": torch.ones(16)}), ["1 unexpected", "base_layer.bias"]),
    "of another shape": (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(2, 17)}), [f"{Q}.lora_A.weight", "(2, 17)"]),
    "no head": (
        lambda t: [t.pop(f"base_model.model.classifier.{leaf}") for leaf in ("weight", "bias")],
        ["base_model.model.classifier.weight is missing", "modules_to_save=['classifier']"],
    ),
    "no bias of the head": (
        lambda t: t.pop("base_model.model.classifier.bias"),
        ["1 missing", "classifier.bias"],
    ),
    "a head of another width": (
        lambda t: t.update({"base_model.model.classifier.weight": torch.ones(3, 17)}),
        ["classifier.weight is (3, 17)", "(3, 16)"],
    ),
    "a head of no row": (
        lambda t: t.update({"base_model.model.classifier.weight": torch.ones(0, 16)}),
        ["classifier.weight is (0, 16)", "a row for each output"],
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_every_tensor_is_checked(directory, bases, case):
    change, parts = TENSORS[case]
    edit_tensors(directory / WEIGHTS, change)
    refused(lambda: read(directory, str(bases / "bert")), str(directory / WEIGHTS), *parts)


def test_files_that_are_not_what_they_should_be(directory, bases):
    def call():
        read(directory, str(bases / "bert"))

    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(content[:-10])
    refused(call, WEIGHTS, "cut short")
    (directory / WEIGHTS).unlink()
    refused(call, str(directory), WEIGHTS, "adapter_model.bin")
    said = (directory / CONFIG).read_text()
    (directory / CONFIG).write_text(said[:-9])
    refused(call, CONFIG, "not valid JSON")
    assert not is_peft(directory)
    (directory / CONFIG).write_text("[]")
    refused(call, CONFIG, "not a JSON object")
    (directory / CONFIG).unlink()
    refused(call, CONFIG, "no such file")
    assert not is_peft(directory)


def test_another_base_is_refused(tmp_path, directory, bases):
    shallow = converted_directory(tmp_path / "shallow", tiny_body(num_hidden_layers=2).float())
    refused(lambda: read(directory, str(shallow)), WEIGHTS, "unexpected")
    wide = converted_directory(tmp_path / "wide", tiny_body(hidden_size=24).float())
    refused(lambda: read(directory, str(wide)), WEIGHTS, "classifier")
    edit_tensors(directory / WEIGHTS, lambda t: t.update({"base_model.model.classifier.weight": torch.ones(3, 24)}))
    refused(lambda: read(directory, str(wide)), f"{Q}.lora_A.weight is (2, 16)", f"{wide} asks for (2, 24)")
    for case, field in (("prefix", "num_layers is 3"), ("prompt", "num_layers is 3")):
        saved(tmp_path / case, bases, IN[case][0])
        refused(lambda case=case: read(tmp_path / case, str(shallow)), CONFIG, field, "of the base 2", "--base")
    refused(lambda: read(directory, str(bases / "resnet")), "task_type is 'SEQ_CLS'", "ResNet")
    run_of = learned(bases, "bert", "lora:rank=2", torch.float32)
    pretrained.write(tmp_path / "run", kept(run_of))
    refused(lambda: read(directory, str(tmp_path / "run")), "no longer plain", "--base")

    write(tmp_path / "ours", run_of)
    other = converted_directory(tmp_path / "other", tiny_body(seed=1, layer_norm_eps=1e-3).float())
    refused(lambda: read(tmp_path / "ours", str(other)), BESIDE, "sha256", str(other), "--base")
    without = pretrained.read(bases / "bert")
    tensors = {name: tensor for name, tensor in without.tensors.items() if not name.startswith("pooler.")}
    pretrained.write(tmp_path / "unpooled", replace(without, tensors=tensors))
    refused(lambda: read(directory, str(tmp_path / "unpooled")), "pooler", "--base")


@pytest.mark.parametrize(
    ("config", "changes", "parts"),
    [
        (IN["ia3"][0], {"feedforward_modules": []}, ["takes in", "output.dense", "gives out"]),
        (IN["ia3"][0], {"feedforward_modules": ["key", "dense"]}, ["self.key", "not in feedforward_modules"]),
        (IN["ia3"][0], {"feedforward_modules": "(dense"}, ["feedforward_modules '(dense' is no pattern"]),
        (IN["ia3"][0], {"feedforward_modules": [1]}, ["feedforward_modules [1] is no pattern"]),
        (IN["ia3"][0], {"target_modules": ["word_embeddings"]}, [CONFIG, "Embedding is no Linear"]),
        (IN["dora"][0], {"target_modules": ["word_embeddings"]}, [CONFIG, "not of Embedding"]),
        (IN["prefix"][0], {"num_virtual_tokens": 6}, ["prompt_embeddings is (5, 96)", "(6, 96)"]),
        (IN["prefix"][0], {"num_virtual_tokens": None}, ["num_virtual_tokens is None"]),
        (IN["prefix"][0], {"num_virtual_tokens": 0}, ["length=0"]),
        (IN["prefix"][0], {"num_attention_heads": 2}, ["num_attention_heads is 2", "of the base 4"]),
        (IN["prefix"][0], {"num_transformer_submodules": 2}, ["num_transformer_submodules is 2", "1"]),
        (IN["prefix"][0], {"task_type": None}, ["task_type is None", "'SEQ_CLS'"]),
        (IN["prompt"][0], {"token_dim": 32}, ["token_dim is 32", "of the base 16"]),
        (IN["prompt"][0], {"num_virtual_tokens": 40}, ["length=40"]),
        (IN["prompt"][0], {"peft_type": "PREFIX_TUNING"}, ["prompt_embeddings is (5, 16)", "(5, 96)"]),
    ],
)
def test_what_else_is_refused(tmp_path, bases, config, changes, parts):
    saved(tmp_path / "theirs", bases, config)
    edit(tmp_path / "theirs" / CONFIG, **changes)
    refused(lambda: read(tmp_path / "theirs", str(bases / "bert")), str(tmp_path / "theirs"), *parts)


def test_methods_that_a_resnet_does_not_have(tmp_path, bases):
    pattern = r".*\.layer\.1\.convolution"
    config = peft.IA3Config(target_modules=pattern, feedforward_modules=[], modules_to_save=["classifier"])
    saved(tmp_path / "theirs", bases, config, "resnet")
    refused(lambda: read(tmp_path / "theirs", str(bases / "resnet")), CONFIG, "ResNet has no")
    virtual = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}
    (tmp_path / "theirs" / CONFIG).write_text(json.dumps(virtual))
    refused(lambda: read(tmp_path / "theirs", str(bases / "resnet")), CONFIG, "ResNet has no")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"task": {"labels": ["a", "b"]}}, ["labels", "no 3 different names"]),
        ({"task": {"labels": ["a", "b", "b"]}}, ["labels", "no 3 different names"]),
        ({"task": {"labels": "abc"}}, ["labels", "no 3 different names"]),
        ({"task": {"max_length": "9"}}, ["max_length", "delete the file"]),
        ({"task": []}, ["task"]),
        ({"settings": {"batch_size": "32"}}, ["settings"]),
        ({"settings": {"twist": 1}}, ["settings"]),
        ({"settings": []}, ["settings"]),
        ({"settings": {"layout": {"twist": 1}}}, ["layout has twist"]),
    ],
)
def test_the_file_beside_is_checked(tmp_path, bases, changes, parts):
    write(tmp_path / "out", learned(bases, "bert", "lora:rank=2"))
    edit(tmp_path / "out" / BESIDE, **changes)
    refused(lambda: read(tmp_path / "out", None), str(tmp_path / "out" / BESIDE), *parts)
    (tmp_path / "out" / BESIDE).unlink()
    assert read(tmp_path / "out", str(bases / "bert")).task["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_directories_of_others_are_not_taken_for_pefts(tmp_path, bases):
    assert not is_peft(bases / "bert") and not is_peft(tmp_path / "nothing")
    (tmp_path / CONFIG).write_text('{"config": {}, "model_type": "bert"}')  # of the adapters library
    assert not is_peft(tmp_path)


# ---- heads of other tasks ----

TAGS = ["O", "B-X", "I-X"]
HEADS_OF = {
    "text-regression": {"mean": 30.0, "deviation": 4.0, "scaled": True, "pool": "cls", "max_length": 9, "pairs": False},
    "multi-label-classification": {
        **{"labels": LABELS, "pool": "cls", "max_length": 9, "pairs": False, "written": None},
        **{"thresholds": [0.5, 0.25, 0.125], "tuning": "each", "tuned_on": 7},
    },
    "token-classification": {"labels": TAGS, "pool": None, "max_length": 9, "overlap": 2, "punctuation_apart": True},
    "question-answering": {
        **{"pool": None, "max_length": 20, "overlap": 2, "max_answer_length": 5, "no_answer": True, "threshold": 0.25}
    },
}
OTHERS = [name for name in HEADS_OF if name in ALL_TASKS]
METHODS_OF = ["lora:rank=2", "dora:rank=2", "ia3", "prefix:length=3,shift=true", "prompt:length=3,pooler=all"]


def learned_for(bases: Path, task: str, method: str) -> Checkpoint:
    """A run of another task, with random weights."""
    run_of, rows = learned(bases, "bert", method), {"text-regression": 1, "question-answering": 2}.get(task, 3)
    pool = HEADS_OF[task]["pool"]
    layout = asdict(task_from({"name": task} | HEADS_OF[task]).LAYOUT())
    return replace(
        run_of,
        task={"name": task} | HEADS_OF[task],
        settings=SETTINGS | {"layout": layout},
        head={name: tensor[:rows] for name, tensor in run_of.head.items()},
        tensors={name: t for name, t in run_of.tensors.items() if pool or not name.startswith("pooler.")},
    )


def auto_there(bases: Path, task: str, labels: int) -> nn.Module:
    transformers.logging.set_verbosity_error()
    loaded = getattr(transformers, f"AutoModelFor{HEADS[task].kind}")
    return loaded.from_pretrained(bases / "bert-hf", num_labels=labels, dtype=torch.float64).eval()


def outputs_here(checkpoint: Checkpoint) -> Tensor:
    """In the units of the targets."""
    state = checkpoint.tuned_body(torch.float64).eval()(*texts())
    head = {name: tensor.double() for name, tensor in checkpoint.head.items()}
    made = nn.functional.linear(state.hidden if state.pooled is None else state.pooled, head["weight"], head["bias"])
    task = task_from(checkpoint.task)
    offset, scale = task.scaling if hasattr(task, "scaling") else (0.0, 1.0)
    return made * scale + offset


def outputs_there(model: nn.Module) -> Tensor:
    """Of the tokens themselves: peft gives the virtual ones of a prompt too."""
    tokens, mask, types = texts()
    made = model.eval()(input_ids=tokens, attention_mask=mask.long(), token_type_ids=types)
    logits = torch.stack([made.start_logits, made.end_logits], -1) if "start_logits" in made else made.logits
    return logits[:, -tokens.shape[1] :] if logits.ndim == 3 else logits


def assert_outputs(ours: Tensor, theirs: Tensor) -> None:
    mask = texts()[1]
    assert ours.shape == theirs.shape and ours.std() > 0.1
    close(ours[mask] if ours.ndim == 3 else ours, theirs[mask] if ours.ndim == 3 else theirs, "outputs")


LANGUAGE = {"name": "causal-lm", "pool": None, "max_length": 9, "blocks": "within"}


def language_model(bases: Path, method: str) -> Checkpoint:
    """A run of causal-lm, whose head is the table of the words."""
    if "causal-lm" not in ALL_TASKS:
        pytest.skip("no task has this head")
    layout = asdict(task_from(LANGUAGE).LAYOUT())
    return replace(learned(bases, "gpt2", method), task=LANGUAGE, settings=SETTINGS | {"layout": layout}, head={})


def test_lora_at_the_words_of_a_language_model_is_refused_as_peft_does_not_bring_it_to_the_head(tmp_path, bases):
    refused(lambda: write(tmp_path / "out", language_model(bases, "lora:sites=word")), "lora:sites=word", TIED)
    plain = transformers.AutoModelForCausalLM.from_pretrained(bases / "gpt2-hf", dtype=torch.float64)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["wte"])
    peft.get_peft_model(plain, config).save_pretrained(str(tmp_path / "theirs"), save_embedding_layers=False)
    refused(lambda: read(tmp_path / "theirs", str(bases / "gpt2")), TIED)


@pytest.mark.parametrize("method", ["lora:rank=2", "ia3", "prefix:length=3,shift=true", "prompt:length=3"])
def test_a_language_model_goes_out_and_in_again(tmp_path, bases, method):
    run_of, task = language_model(bases, method), LANGUAGE
    write(tmp_path / "out", run_of)
    plain = transformers.AutoModelForCausalLM.from_pretrained(bases / "gpt2-hf", dtype=torch.float64)
    model = peft.PeftModel.from_pretrained(plain, str(tmp_path / "out")).eval()
    tokens, mask = texts_of_gpt2()
    body = run_of.tuned_body(torch.float64).eval()
    hidden = body(tokens, mask).hidden
    theirs = model(input_ids=tokens, attention_mask=mask.long(), output_hidden_states=True)
    close(hidden[mask], theirs.hidden_states[-1][:, -12:][mask], "hidden states")
    close((hidden @ word_vectors(body).T)[mask], theirs.logits[:, -12:][mask], "logits")
    again = read(tmp_path / "out", None)
    assert again.task == task and again.head == {} and again.grafts.keys() == run_of.grafts.keys()
    assert all(torch.equal(tensor, again.grafts[name]) for name, tensor in run_of.grafts.items())


@pytest.mark.parametrize("method", METHODS_OF)
@pytest.mark.parametrize("task", OTHERS)
def test_heads_of_other_tasks_go_out_and_in_again(tmp_path, bases, task, method):
    needs_past_key_values(method)
    if HEADS_OF[task]["pool"] is None:
        method = method.removesuffix(",pooler=all")  # there is none
    run_of = learned_for(bases, task, method)
    if task == "question-answering" and method.startswith(("prefix", "prompt")):
        refused(lambda: write(tmp_path / "out", run_of), method, "token types")
        return
    write(tmp_path / "out", run_of)
    model = peft.PeftModel.from_pretrained(auto_there(bases, task, len(run_of.head["weight"])), str(tmp_path / "out"))
    assert_outputs(outputs_here(run_of), outputs_there(model))
    again = read(tmp_path / "out", None)
    expected = run_of.task | ({"scaled": False} if task == "text-regression" else {})
    assert again.task == expected and again.settings == run_of.settings
    assert_outputs(outputs_here(again), outputs_there(model))


CONFIGS_OF = {
    "lora": lambda kind: peft.LoraConfig(task_type=kind, r=2, target_modules=["query", "value"]),
    "ia3": lambda kind: peft.IA3Config(task_type=kind, target_modules=["key", "value"], feedforward_modules=[]),
    "prefix": lambda kind: peft.PrefixTuningConfig(task_type=kind, num_virtual_tokens=3),
    "prompt": lambda kind: peft.PromptTuningConfig(task_type=kind, num_virtual_tokens=3),
}


@pytest.mark.parametrize("method", CONFIGS_OF)
@pytest.mark.parametrize("task", [name for name in OTHERS if name != "multi-label-classification"])
def test_heads_of_other_tasks_that_peft_has_saved(tmp_path, bases, task, method):
    needs_past_key_values(method)
    kind = {"token-classification": "TOKEN_CLS", "question-answering": "QUESTION_ANS"}.get(task, "SEQ_CLS")
    rows = {"text-regression": 1, "question-answering": 2}.get(task, 3)
    config = CONFIGS_OF[method](kind)
    if task == "question-answering" and method in ("lora", "ia3"):  # so that token types get through
        config.task_type, config.modules_to_save = None, ["qa_outputs"]
    model = peft.get_peft_model(auto_there(bases, task, rows), config)
    generator = torch.Generator().manual_seed(2)
    for p in model.parameters():
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3
    model.save_pretrained(str(tmp_path / "theirs"))
    names = TAGS if task == "token-classification" else None
    if config.task_type == "QUESTION_ANS":
        refused(lambda: read(tmp_path / "theirs", str(bases / "bert")), CONFIG, "'QUESTION_ANS'", "token types", "qa_outputs")
        return
    run_of = read(tmp_path / "theirs", str(bases / "bert"), names)
    assert run_of.task["name"] == task and run_of.task.get("labels") == names
    assert_outputs(outputs_here(run_of), outputs_there(model))


@pytest.mark.skipif("question-answering" not in ALL_TASKS, reason="the task is not there")
def test_peft_drops_the_token_types_of_question_answering(tmp_path, bases):
    """The trap: with task_type QUESTION_ANS the same weights answer as if question and context were one text."""
    run_of = learned_for(bases, "question-answering", "lora:rank=2")
    write(tmp_path / "out", run_of)
    right = peft.PeftModel.from_pretrained(auto_there(bases, "question-answering", 2), str(tmp_path / "out"))
    edit(tmp_path / "out" / CONFIG, task_type="QUESTION_ANS")
    naive = peft.PeftModel.from_pretrained(auto_there(bases, "question-answering", 2), str(tmp_path / "out"))
    tokens, mask, _ = texts()
    assert_outputs(outputs_here(run_of), outputs_there(right))
    assert (outputs_there(naive) - outputs_here(run_of))[mask].abs().max() > 0.1
    untyped = naive(input_ids=tokens, attention_mask=mask.long()).start_logits
    close(outputs_there(naive)[..., 0], untyped, "as without token types")


def test_what_peft_has_no_head_for_is_refused(tmp_path, bases):
    run_of = learned(bases, "bert", "lora:rank=2")
    lm = {"name": "masked-lm", "pool": None, "max_length": 9, "blocks": "within", "masking": "exact", "mask_share": 0.15}
    refused(lambda: write(tmp_path / "out", replace(run_of, task=lm)), "masked-lm", "no task_type", "--to hf")
    assert not (tmp_path / "out").exists()
    write(tmp_path / "out", learned_for(bases, "token-classification", "ia3"))
    beside = json.loads((tmp_path / "out" / BESIDE).read_text())
    edit(tmp_path / "out" / BESIDE, task=beside["task"] | {"name": "text-classification"})
    refused(lambda: read(tmp_path / "out", None), BESIDE, "'text-classification'", "TokenClassification")
    edit(tmp_path / "out" / BESIDE, task=beside["task"])
    refused(lambda: read(tmp_path / "out", None, ["O", "B-X"]), "--label-names", "no 3 different names")
