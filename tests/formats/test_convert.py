"""convert.py on files as they lie about: what is dropped is named, what is broken is refused, nothing is half written."""

import json
import os
import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import huggingface_directory, tiny_body, trust_our_own_files
from tokenizers import Tokenizer, models, processors

import convert
from minift import cli, pretrained
from minift.errors import UserError
from minift.formats.huggingface import from_processor
from minift.models.resnet import ResNetConfig
from minift.pretrained import read


@pytest.fixture(autouse=True)
def own_files(monkeypatch):
    trust_our_own_files(monkeypatch)


def change_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_converts_and_says_what_it_did(tmp_path, capsys):
    body = tiny_body()
    source = huggingface_directory(
        tmp_path / "source", body, "bert.", {"cls.predictions.bias": torch.zeros(2), "classifier.weight": torch.ones(2, 16)}
    )
    assert convert.main([str(source), "--out", str(tmp_path / "out")]) is None
    printed = capsys.readouterr().out
    assert "dropped  classifier.weight, cls.predictions.bias" in printed and "pooler yes" in printed
    tensors = read(tmp_path / "out").tensors
    assert all(torch.equal(tensors[name], t) for name, t in body.state_dict().items())


def test_out_and_in_again_without_any_reference_library(tmp_path):
    source = huggingface_directory(tmp_path / "source")
    convert.main([str(source), "--out", str(tmp_path / "ours")])
    convert.main([str(tmp_path / "ours"), "--to", "hf", "--out", str(tmp_path / "back")])
    first, second = (load_file(directory / "model.safetensors") for directory in (source, tmp_path / "back"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def as_bin(source, content):
    (source / "model.safetensors").unlink()
    content(source / "pytorch_model.bin")


def save_without(source, gone):
    tensors = load_file(source / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if gone not in name}, source / "model.safetensors")


def write_template(source, lacks):
    """A tokenizer.json whose template has a token that it does not describe."""
    tokenizer = Tokenizer(models.WordPiece({"[CLS]": 0, "[SEP]": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 0), ("[SEP]", 1)])
    content = json.loads(tokenizer.to_str())
    del content["post_processor"]["special_tokens"][lacks]
    (source / "tokenizer.json").write_text(json.dumps(content))


BROKEN = {
    "cut short": (lambda s: truncate(s / "model.safetensors"), "cut short"),
    "empty": (lambda s: os.truncate(s / "model.safetensors", 0), "cut short"),
    "a pointer of git-lfs": (
        lambda s: (s / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "no safetensors file",
    ),
    "bin cut short": (lambda s: as_bin(s, lambda p: (torch.save({"a": torch.zeros(1000)}, p), truncate(p))), "cut short"),
    "bin of text": (lambda s: as_bin(s, lambda p: p.write_text("<html>not found</html>")), "not a file of torch.save"),
    "bin with code": (
        lambda s: as_bin(s, lambda p: torch.save({"a": os.system}, p)),
        "Python objects besides tensors",
    ),
    "a tokenizer of another kind": (
        lambda s: (s / "tokenizer.json").write_text(Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")).to_str()),
        "the tokenizer is not BERT's",
    ),
    "bin of a list": (lambda s: as_bin(s, lambda p: torch.save([1], p)), "not a dictionary of tensors"),
    "another architecture": (lambda s: change_config(s, model_type="t5"), "model_type is 't5'"),
    "no model_type": (lambda s: (s / "config.json").write_text("{}"), "model_type is None"),
    "config is no JSON": (lambda s: (s / "config.json").write_text("{"), "not valid JSON"),
    "unknown activation": (lambda s: change_config(s, hidden_act="silu"), "hidden_act is 'silu'"),
    "relative positions": (lambda s: change_config(s, position_embedding_type="relative_key"), "position_embedding_type"),
    "heads do not divide": (lambda s: change_config(s, num_attention_heads=5), "no multiple"),
    "another width": (lambda s: change_config(s, intermediate_size=25), "config.json asks for (25"),
    "more layers": (lambda s: change_config(s, num_hidden_layers=4), "16 missing (first encoder.layer.3"),
    "fewer layers": (lambda s: change_config(s, num_hidden_layers=2), "16 unexpected (first encoder.layer.2"),
    "a tensor missing": (
        lambda s: save_without(s, "layer.1.output.dense.bias"),
        "1 missing (first encoder.layer.1.output.dense.bias",
    ),
    "no weights": (lambda s: (s / "model.safetensors").unlink(), "no model.safetensors and no pytorch_model.bin"),
    "no tokenizer": (lambda s: (s / "vocab.txt").unlink(), "no tokenizer.json and no vocab.txt"),
    "another vocabulary": (lambda s: (s / "vocab.txt").write_text("a\nb\n"), "vocabulary lacks"),
    "a larger vocabulary": (lambda s: (s / "vocab.txt").open("a").write("".join(f"w{i}\n" for i in range(99))), "the model"),
    "tokenizer.json is no tokenizer": (lambda s: (s / "tokenizer.json").write_text("{}"), "not readable as a tokenizer"),
    "a template without its token": (lambda s: write_template(s, "[SEP]"), "special_tokens of its template lack '[SEP]'"),
    "a shard missing": (
        lambda s: (
            (s / "model.safetensors").unlink(),
            (s / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}'),
        ),
        "x.safetensors: no such file",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_refused_in_one_line(tmp_path, case):
    source = huggingface_directory(tmp_path / "source")
    spoil, wanted = BROKEN[case]
    spoil(source)
    with pytest.raises(UserError) as error:
        convert.main([str(source), "--out", str(tmp_path / "out")])
    assert wanted in str(error.value) and "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    assert not (tmp_path / "out").exists()


# ---- side files and configurations ----


def change_tokenizer(**changes):
    def change(source):
        path = source / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def write_pooling(content):
    return lambda source: ((source / "1_Pooling").mkdir(), (source / "1_Pooling" / "config.json").write_text(content))


def write_side(name, content):
    return lambda source: (source / name).write_text(content)


def configure(**changes):
    return lambda source: change_config(source, **changes)


MALFORMED = {
    "vocab.txt in Latin-1": (lambda s: (s / "vocab.txt").write_bytes(b"[PAD]\n[UNK]\ncaf\xe9\n"), "vocab.txt, line 3: not UTF-8"),
    "config.json is a list": (write_side("config.json", "[1]"), "config.json: not a JSON object"),
    "config.json is nested": (write_side("config.json", "[" * 100_000), "config.json: not valid JSON"),
    "model_type is a list": (configure(model_type=["bert"]), "model_type is ['bert']"),
    "tokenizer_config.json is a list": (write_side("tokenizer_config.json", "[]"), "tokenizer_config.json: not a JSON object"),
    "tokenizer_config.json is a number": (write_side("tokenizer_config.json", "3"), "tokenizer_config.json: not a JSON object"),
    "added_tokens.json is a list": (write_side("added_tokens.json", '["a"]'), "added_tokens.json: not a JSON object"),
    "an id that is a text": (write_side("added_tokens.json", '{"a": "7"}'), "added_tokens.json: the id of 'a' is '7'"),
    "special_tokens_map.json is null": (
        write_side("special_tokens_map.json", "null"),
        "special_tokens_map.json: not a JSON object",
    ),
    "do_lower_case is null": (change_tokenizer(do_lower_case=None), "do_lower_case is None; true or false is expected"),
    "do_lower_case is a text": (change_tokenizer(do_lower_case="true"), "do_lower_case is 'true'"),
    "strip_accents is a number": (change_tokenizer(strip_accents=1), "strip_accents is 1"),
    "half a character": (change_tokenizer(cls_token="\ud83d"), "cls_token: half of a character"),
    "half a character, added": (
        change_tokenizer(additional_special_tokens=[{"content": "\ud83d"}]),
        "additional_special_tokens: half of a character",
    ),
    "cls_token is null": (change_tokenizer(cls_token=None), "cls_token is None; a token is expected"),
    "sep_token is empty": (change_tokenizer(sep_token=""), "sep_token is ''"),
    "unk_token is a list": (change_tokenizer(unk_token=["a"]), "unk_token is ['a']"),
    "cls_token without content": (change_tokenizer(cls_token={"lstrip": True}), "cls_token is {'lstrip': True}"),
    "a flag of a token is a text": (change_tokenizer(cls_token={"content": "a", "lstrip": "no"}), "cls_token is {'content': 'a'"),
    "additional tokens are a text": (change_tokenizer(additional_special_tokens="ab"), "additional_special_tokens is 'ab'"),
    "added_tokens_decoder is a list": (change_tokenizer(added_tokens_decoder=["a"]), "added_tokens_decoder is ['a']"),
    "added_tokens_decoder of words": (change_tokenizer(added_tokens_decoder={"x": {}}), "added_tokens_decoder is {'x': {}}"),
    "1_Pooling/config.json is a list": (write_pooling("[]"), "config.json: not a JSON object"),
    "heads of 0": (configure(num_attention_heads=0), "num_attention_heads is 0; a whole number from 1"),
    "heads below 0": (configure(num_attention_heads=-4), "num_attention_heads is -4"),
    "a width below 0": (configure(hidden_size=-16), "hidden_size is -16"),
    "layers as a text": (configure(num_hidden_layers="3"), "num_hidden_layers is '3'"),
    "layers as a truth value": (configure(num_hidden_layers=True), "num_hidden_layers is True"),
    "a fractional width": (configure(intermediate_size=24.0), "intermediate_size is 24.0"),
    "padding outside": (configure(pad_token_id=99999), "pad_token_id is 99999; a whole number from 0"),
    "padding of -1": (configure(pad_token_id=-1), "pad_token_id is -1"),
    "epsilon as a text": (configure(layer_norm_eps="1e-12"), "layer_norm_eps is '1e-12'; a number from 0"),
    "epsilon below 0": (configure(layer_norm_eps=-1e-5), "layer_norm_eps is -1e-05"),
    "epsilon of NaN": (configure(layer_norm_eps=float("nan")), "layer_norm_eps is nan"),
    "dropout of 5": (configure(classifier_dropout=5), "classifier_dropout is 5; a number from 0 to below 1"),
    "dropout below 0": (configure(attention_probs_dropout_prob=-0.5), "attention_probs_dropout_prob is -0.5"),
    "dropout of everything": (configure(hidden_dropout_prob=1.0), "hidden_dropout_prob is 1.0"),
    "an activation as a list": (configure(hidden_act=["gelu"]), "hidden_act is ['gelu']"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_side_file_is_refused_in_one_line(tmp_path, case):
    source = huggingface_directory(tmp_path / "source")
    spoil, expected = MALFORMED[case]
    spoil(source)
    with pytest.raises(UserError) as error:
        convert.main([str(source), "--out", str(tmp_path / "out")])
    assert expected in str(error.value) and "\n" not in str(error.value) and str(tmp_path) in str(error.value), error.value
    assert not (tmp_path / "out").exists()


WRONG_RESNETS = {
    "depths": [None, "3", [], [0], [1.0], [True], [10**9], [999, 999], {"a": 1}],
    "hidden_sizes": ["ab", [], [-16, 24], [16, 2], [16.0, 24], [2**40, 4]],
    "embedding_size": [0, -1, "8", 8.0, 2**40],
    "num_channels": [0, "3"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG_RESNETS.items() for value in values])
def test_a_resnet_of_no_sizes_is_refused(field, value):
    sizes = {"depths": (2, 1), "hidden_sizes": (16, 24), "embedding_size": 8}
    with pytest.raises(ValueError, match=rf"{field} (is|has|are) "):
        ResNetConfig(**sizes | {field: value})


PROCESSORS = [
    {"rescale_factor": "x"},
    {"crop_pct": "0.9"},
    {"crop_pct": -1},
    {"crop_pct": float("nan")},
    {"image_processor_type": 5},
    {"image_processor_type": ["ConvNextImageProcessor"]},
    {"size": True},
    {"size": {"shortest_edge": "224"}},
    {"size": 10**12},
    {"resample": "3"},
    {"resample": [3]},
    {"image_std": [0, 1, 1]},
    {"image_mean": [float("nan"), 1, 1]},
    {"image_mean": [True, 1, 1]},
    {"image_mean": "abc"},
]


@pytest.mark.parametrize("changes", PROCESSORS)
def test_values_of_another_type_in_preprocessor_config(changes):
    usual = {"size": 224, "resample": 3, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    usual |= {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875}
    assert from_processor(usual, []) is not None
    found = from_processor(usual | changes, [])  # None: what is assumed in its place is said
    assert (found is None) == ("image_processor_type" not in changes)


# ---- names ----


def rename(source, change):
    tensors = load_file(source / "model.safetensors")
    save_file({change(name): tensor for name, tensor in tensors.items()}, source / "model.safetensors")


@pytest.mark.parametrize("head", ["", "bert."])
@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "auto_model.", "0.auto_model.", "module.model.", "_orig_mod.module."]
)
def test_wrappers_around_the_names_are_taken_off(tmp_path, capsys, prefix, head):
    body = tiny_body()
    source = huggingface_directory(tmp_path / "source", body, head)
    rename(source, lambda name: prefix + name)
    extra = {"loss.weight": torch.ones(3)} if "module" not in prefix else {}
    save_file(load_file(source / "model.safetensors") | extra, source / "model.safetensors")
    assert convert.main([str(source), "--out", str(tmp_path / "out")]) is None
    printed = capsys.readouterr().out
    assert "taken off" in printed and f"dropped  {', '.join(extra) or 'nothing'}" in printed
    assert "_orig_mod." not in prefix or "note     _orig_mod. taken off the names" in printed
    tensors = read(tmp_path / "out").tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in body.state_dict().items())


def test_a_compiled_part_within_the_names(tmp_path):
    source = huggingface_directory(tmp_path / "source")
    rename(source, lambda name: name.replace("encoder.", "encoder._orig_mod."))
    assert convert.main([str(source), "--out", str(tmp_path / "out")]) is None


def strange(source):
    rename(source, lambda name: f"student_network.{name}")


def two_models(source):
    tensors = load_file(source / "model.safetensors")
    save_file({f"{p}.{name}": t.clone() for name, t in tensors.items() for p in ("model", "net")}, source / "model.safetensors")


def twice(source):
    tensors = load_file(source / "model.safetensors")
    more = {f"_orig_mod.{name}": tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors | more, source / "model.safetensors")


def old_and_new(source):
    tensors = load_file(source / "model.safetensors")
    gamma = {"embeddings.LayerNorm.gamma": tensors["embeddings.LayerNorm.weight"].clone()}
    save_file(tensors | gamma, source / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (strange, "none of its names begins as those of BertModel do"),
        (two_models, "several models are in it, under model., net."),
        (twice, "stands in it twice, with and without _orig_mod."),
        (old_and_new, "embeddings.LayerNorm.weight stands in it twice"),
    ],
)
def test_names_that_are_nobody_s(tmp_path, spoil, expected):
    source = huggingface_directory(tmp_path / "source")
    spoil(source)
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        convert.main([str(source), "--out", str(tmp_path / "out")])
    assert "\n" not in str(error.value)
    assert "student_network." in str(error.value) or spoil is not strange


def test_a_directory_named_by_a_dot(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIFT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(huggingface_directory(tmp_path / "my-bert"))
    convert.main(["."])
    assert (tmp_path / "weights" / "my-bert" / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_wrong_use(tmp_path):
    source = huggingface_directory(tmp_path / "source")
    convert.main([str(source), "--out", str(tmp_path / "out")])
    for arguments, wanted in (
        ([str(source), "--out", str(tmp_path / "out")], "not empty"),
        ([str(tmp_path / "out")], "minift's layout already"),
        ([str(source / "model.safetensors")], "give the directory"),
        ([str(tmp_path / "out"), "--to", "hf"], "--out DIR"),
        ([str(source), "--to", "hf", "--out", str(tmp_path / "hf")], "not converted yet"),
        ([str(source), "--revision", "main", "--out", str(tmp_path / "new")], "is a directory here"),
    ):
        with pytest.raises(UserError, match=wanted):
            convert.main(arguments)


def test_a_check_without_transformers_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    convert.main([str(huggingface_directory(tmp_path / "source")), "--out", str(tmp_path / "out")])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="--check compares with transformers, which is not installed"):
        convert.main([str(tmp_path / "out"), "--to", "hf", "--out", str(tmp_path / "hf"), "--check"])
    assert not (tmp_path / "hf").exists()


# ---- where things go ----


def test_weights_of_a_wheel_go_to_the_user_s_cache(tmp_path, monkeypatch):
    """Never beside the package, which in a wheel is site-packages; tests/wheel.sh installs one."""
    monkeypatch.delenv("MINIFT_WEIGHTS", raising=False)
    assert pretrained.weights_directory() == cli.CHECKOUT / "weights"
    monkeypatch.setattr(cli, "CHECKOUT", tmp_path / "site-packages")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert pretrained.weights_directory() == tmp_path / "cache" / "minift"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert pretrained.weights_directory() == tmp_path / "home" / ".cache" / "minift"
    with pytest.raises(UserError, match="to download and convert it: minift-convert owner/name"):
        pretrained.find("owner/name")
    monkeypatch.setenv("MINIFT_WEIGHTS", str(tmp_path / "weights"))
    assert pretrained.weights_directory() == tmp_path / "weights"


@pytest.mark.parametrize("name", ["train", "convert", "predict", "evaluate"])
def test_every_command_of_a_wheel_finds_its_main(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [f"minift-{name}", "--help"])
    monkeypatch.setattr(cli, "command", lambda main, called: main(["--help"]) if called == name else None)
    with pytest.raises(SystemExit) as end:
        getattr(cli, name)()
    assert end.value.code == 0 and "usage:" in capsys.readouterr().out
