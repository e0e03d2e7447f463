"""RoBERTa, XLM-R, DistilRoBERTa and GPT-2 checkpoints in and out, against transformers: ids, weights, hidden states, logits."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from reference.test_tokenizer import AWKWARD, PAIRS
from safetensors.torch import load_file, save_file
from tiny import TEXTS, rows_file, tiny_gpt2, tiny_roberta, write_json
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import convert
import train
from minift import load
from minift.errors import UserError
from minift.formats.bytelevel import DEFAULTS, END_OF_TEXT, MASK, read_gpt2_tokenizer, read_tokenizer, tokenizer_of_bytes
from minift.formats.huggingface import read, to_huggingface
from minift.pretrained import read as read_converted

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
MASK_TOKEN = {"__type": "AddedToken", "content": "<mask>", **MASK}
ROWS = [*TEXTS, *(text for text in AWKWARD if text)]


def trained_bpe(blank: bool = False, special: list[str] = SPECIAL) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=blank)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(ROWS * 3, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet))
    return tokenizer


def trained_unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=[*SPECIAL, "<mask>"], unk_token="<unk>")
    tokenizer.train_from_iterator(ROWS * 3, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ids
    )
    return tokenizer


def checkpoint_directory(
    directory: Path, kind: str = "roberta", prefix: str = "", files: str = "pair", extra=None, **settings
) -> Path:
    """files: pair = vocab.json and merges.txt, whole = tokenizer.json as transformers makes it of them."""
    directory.mkdir(parents=True)
    if kind == "roberta":
        tokenizer = trained_bpe()
        model = json.loads(tokenizer.to_str())["model"]
        model["vocab"]["<mask>"] = len(model["vocab"])
        write_json(directory / "vocab.json", model["vocab"])
        lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
        (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        settings = {"tokenizer_class": "RobertaTokenizer", "mask_token": MASK_TOKEN} | settings
    elif kind == "gpt2":
        tokenizer = trained_bpe(special=[END_OF_TEXT])
        tokenizer.model.save(str(directory))
    else:
        tokenizer = trained_unigram()
        tokenizer.save(str(directory / "tokenizer.json"))
        settings = {"tokenizer_class": "XLMRobertaTokenizer"} | settings
    write_json(directory / "tokenizer_config.json", settings)
    if kind == "gpt2":
        body = tiny_gpt2(pool=None, vocab_size=tokenizer.get_vocab_size(), eos_token_id=tokenizer.token_to_id(END_OF_TEXT))
    else:
        body = tiny_roberta(vocab_size=tokenizer.get_vocab_size() + 1)
    write_json(directory / "config.json", {"model_type": kind, **{f: v for f, v in vars(body.config).items()}})
    if files == "whole" and kind == "roberta":
        theirs = transformers.RobertaTokenizerFast.from_pretrained(directory)
        theirs.backend_tokenizer.save(str(directory / "tokenizer.json"))
        for name in ("vocab.json", "merges.txt"):
            (directory / name).unlink()
    weights = to_huggingface({name: t.detach().clone() for name, t in body.state_dict().items()}, body, prefix)
    save_file(weights | (extra or {}), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


class Room:
    vocab_size = 10_000
    pad_token_id = 1


def assert_same(ours: Tokenizer, theirs) -> None:
    for text in [*AWKWARD, "the film was <mask>.", "<mask> and <mask>", "a</s>b"]:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
    for first, second in PAIRS:
        encoded = ours.encode(first, second)
        assert encoded.ids == theirs([first], [second])["input_ids"][0], (first, second)
        assert not any(encoded.type_ids)


@pytest.mark.parametrize("settings", [{}, {"add_prefix_space": True}, {"bos_token": "<s>", "unk_token": "<unk>"}])
@pytest.mark.parametrize("files", ["pair", "whole"])
def test_byte_level_bpe_is_that_of_transformers(tmp_path, files, settings):
    directory = checkpoint_directory(tmp_path / "checkpoint", files=files, **settings)
    if settings.get("add_prefix_space") and files == "whole":  # tokenizer_config.json wins over tokenizer.json
        write_json(directory / "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"})
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    assert_same(read_tokenizer(directory, Room), theirs)


def test_the_mask_takes_the_blank_before_it_where_no_file_says_so(tmp_path):
    """As transformers 4; transformers 5 makes a token of the blank, which pretraining never saw there."""
    directory = checkpoint_directory(tmp_path / "checkpoint", mask_token="<mask>")
    ours, theirs = read_tokenizer(directory, Room), transformers.AutoTokenizer.from_pretrained(directory)
    encoded = ours.encode("film <mask>")
    assert encoded.ids[-2] == ours.token_to_id("<mask>") and "\u0120" not in encoded.tokens
    if int(transformers.__version__.split(".")[0]) < 5:
        assert_same(ours, theirs)


def test_unigram_is_that_of_transformers(tmp_path):
    directory = checkpoint_directory(tmp_path / "checkpoint", "xlm-roberta")
    assert_same(read_tokenizer(directory, Room), transformers.AutoTokenizer.from_pretrained(directory))


@pytest.mark.parametrize(
    ("kind", "prefix", "extra"),
    [
        ("roberta", "", {}),
        ("roberta", "roberta.", {"lm_head.bias": torch.zeros(3), "roberta.embeddings.position_ids": torch.arange(40)[None]}),
        ("xlm-roberta", "roberta.", {"classifier.dense.weight": torch.zeros(2)}),
    ],
)
def test_round_trip_is_bit_exact_and_each_layer_is_that_of_transformers(tmp_path, kind, prefix, extra):
    source = checkpoint_directory(tmp_path / "source", kind, prefix, extra=extra)
    _, report = read(source, "", None)
    assert report.dropped == [name for name in extra if not name.endswith("position_ids")]
    plain = {name: t for name, t in load_file(source / "model.safetensors").items() if name not in extra}
    save_file(plain, source / "model.safetensors", metadata={"format": "pt"})
    assert convert.main([str(source), "--out", str(tmp_path / "ours"), "--check"]) == 0
    assert convert.main([str(tmp_path / "ours"), "--to", "hf", "--out", str(tmp_path / "back"), "--check"]) == 0
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert {f"{prefix}{name}" for name in back} == plain.keys()
    assert all(torch.equal(back[name.removeprefix(prefix)], tensor) for name, tensor in plain.items())
    ours = read_converted(tmp_path / "ours")
    for directory in (source, tmp_path / "back"):
        assert_same(ours.tokenizer, transformers.AutoTokenizer.from_pretrained(directory))
    if kind == "roberta":  # without tokenizer.json the two other files give the same
        (tmp_path / "back" / "tokenizer.json").unlink()
        assert_same(ours.tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path / "back"))
        assert_same(read_tokenizer(tmp_path / "back", ours.body().config), transformers.AutoTokenizer.from_pretrained(source))
    assert convert.main([str(tmp_path / "back"), "--out", str(tmp_path / "again")]) is None
    again = read_converted(tmp_path / "again")
    assert again.config == ours.config and all(torch.equal(t, again.tensors[n]) for n, t in ours.tensors.items())
    assert again.architecture == kind and json.loads((tmp_path / "back" / "config.json").read_text())["model_type"] == kind


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
def test_a_run_loads_as_a_sequence_classifier(tmp_path, kind):
    """transformers' head is dense, tanh, out_proj over <s>: the pooler and the head of here."""
    convert.main([str(checkpoint_directory(tmp_path / "source", kind)), "--out", str(tmp_path / "base")])
    flags = ["--epochs", "1", "--precision", "float32", "--lr", "1e-3", "--out", str(tmp_path / "run")]
    train.main(["--train", str(rows_file(tmp_path / "rows.csv")), "--model", str(tmp_path / "base"), *flags])
    assert convert.main([str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "hf"), "--check"]) == 0
    model, said = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = load(tmp_path / "run").predict(TEXTS)
    with torch.inference_mode():
        p = model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.softmax(-1)
    labels = [model.config.id2label[i] for i in range(2)]
    torch.testing.assert_close(p, torch.tensor([[o["probabilities"][label] for label in labels] for o in ours]), rtol=0, atol=1e-6)


def test_pairs_have_their_template_and_no_token_types(tmp_path):
    convert.main([str(checkpoint_directory(tmp_path / "source")), "--out", str(tmp_path / "base")])
    rows = tmp_path / "pairs.tsv"
    lines = [f"the film {i}\tgood food {i % 3}\t{'ab'[i % 2]}" for i in range(24)]
    rows.write_text("\n".join(["sentence1\tsentence2\tlabel", *lines]))
    flags = ["--train", str(rows), "--model", str(tmp_path / "base"), "--epochs", "1", "--precision", "float32"]
    train.main([*flags, "--out", str(tmp_path / "run")])
    tuned = load(tmp_path / "run")
    examples = tuned.task.read([("the film", "good food")], tuned.layout, labelled=False)
    (batch,) = tuned.prepare(examples).batches([[0]], torch.device("cpu"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "source")("the film", "good food")["input_ids"]
    assert batch.inputs[0].tolist() == [theirs] and not batch.inputs[2].any()
    with pytest.raises(UserError, match="--max-length 5: expected 6 or more for pairs, of which 4 are special"):
        train.main([*flags, "--max-length", "5", "--out", str(tmp_path / "never")])


def test_masked_lm_and_a_task_from_it(tmp_path, capsys):
    convert.main([str(checkpoint_directory(tmp_path / "source")), "--out", str(tmp_path / "base")])
    docs = tmp_path / "docs.txt"
    docs.write_text("\n".join(f"{text} {i}" for i, text in enumerate(TEXTS * 6)))
    flags = ["--model", str(tmp_path / "base"), "--epochs", "1", "--precision", "float32", "--masking", "whole-words"]
    train.main(["--task", "masked-lm", "--train", str(docs), *flags, "--out", str(tmp_path / "mlm")])
    made, same = load(tmp_path / "mlm").predict(["the film was <mask>.", "the film was [MASK]."])
    assert len(made["masks"]) == 1 and made == same
    capsys.readouterr()
    flags = ["--model", str(tmp_path / "mlm"), "--epochs", "1", "--precision", "float32", "--out", str(tmp_path / "run")]
    train.main(["--train", str(rows_file(tmp_path / "rows.csv")), *flags])
    assert "newly initialised: head; its own head, of masked-lm, is left out" not in (said := capsys.readouterr().out)
    assert "newly initialised: head, pooler; its own head, of masked-lm, is left out" in said


@pytest.mark.parametrize("library", ["peft", "adapters"])
def test_directories_of_peft_and_adapters_are_refused(tmp_path, library):
    convert.main([str(checkpoint_directory(tmp_path / "source")), "--out", str(tmp_path / "base")])
    flags = ["--method", {"peft": "lora", "adapters": "houlsby"}[library], "--epochs", "1", "--precision", "float32"]
    data = ["--train", str(rows_file(tmp_path / "rows.csv")), "--model", str(tmp_path / "base")]
    train.main([*data, *flags, "--out", str(tmp_path / "run")])
    with pytest.raises(UserError, match="roberta: directories of peft and of the adapters library"):
        convert.main([str(tmp_path / "run"), "--to", library, "--out", str(tmp_path / "out")])


def broken(directory: Path, name: str, content: str | None) -> Path:
    path = directory / name
    path.unlink() if content is None else path.write_text(content)
    return directory


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("merges.txt", None, "there is no tokenizer.json, and no merges.txt"),
        ("merges.txt", "#version: 0.2\na b c\n", "merges.txt:2: two pieces with a blank between them are expected"),
        ("merges.txt", "#version: 0.2\nqqqq zzzz\n", "merges.txt: does not belong to vocab.json"),
        ("vocab.json", '{"a": "b"}', "an object of tokens and their ids is expected"),
        ("vocab.json", "[1]", "not a JSON object"),
        ("tokenizer_config.json", '{"tokenizer_class": "GPT2Tokenizer"}', "tokenizer_class is 'GPT2Tokenizer'"),
        ("tokenizer_config.json", '{"add_prefix_space": "yes"}', "add_prefix_space is 'yes'; true or false is expected"),
        ("tokenizer_config.json", '{"pad_token": "</s>"}', "'</s>' has id 2 in the tokenizer, and pad_token_id of the model is 1"),
    ],
)
def test_what_is_broken_is_said_in_one_line(tmp_path, name, content, says):
    directory = broken(checkpoint_directory(tmp_path / "checkpoint"), name, content)
    with pytest.raises(UserError, match=says) as refused:
        read(directory, "", None)
    assert "\n" not in str(refused.value)


def test_a_sentencepiece_model_alone_is_not_read(tmp_path):
    directory = checkpoint_directory(tmp_path / "checkpoint", "xlm-roberta")
    (directory / "tokenizer.json").rename(directory / "sentencepiece.bpe.model")
    with pytest.raises(UserError, match=r"without a tokenizer\.json minift reads RobertaTokenizer alone"):
        read(directory, "", None)
    assert DEFAULTS["mask"] == "<mask>"


# ---- GPT-2 ----


class RoomOfGpt2:
    vocab_size = 10_000
    eos_token_id = 0


@pytest.mark.parametrize("settings", [{}, {"add_prefix_space": True}, {"pad_token": END_OF_TEXT}])
@pytest.mark.parametrize("files", ["pair", "whole"])
def test_the_tokenizer_of_gpt2_is_that_of_transformers(tmp_path, files, settings):
    directory = checkpoint_directory(tmp_path / "checkpoint", "gpt2", **settings)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    if files == "whole":
        theirs.backend_tokenizer.save(str(directory / "tokenizer.json"))
        for name in ("vocab.json", "merges.txt"):
            (directory / name).unlink()
        theirs = transformers.AutoTokenizer.from_pretrained(directory)
    ours = read_gpt2_tokenizer(directory, RoomOfGpt2)
    for text in [*AWKWARD, "a<|endoftext|>b", "<|endoftext|>", ""]:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text


def test_bytes_are_a_vocabulary(tmp_path):
    """The id of a byte is the byte, whatever the text; GPT2Tokenizer of transformers reads what is written of it."""
    tokenizer = tokenizer_of_bytes()
    for text in AWKWARD:
        assert tokenizer.encode(text).ids == list(text.encode()) and tokenizer.decode(list(text.encode())) == text
    assert tokenizer.encode("a<|endoftext|>").ids == [97, 256] and tokenizer.get_vocab_size() == 257


def test_a_gpt2_comes_in_and_goes_out_bit_for_bit(tmp_path, capsys):
    """As the hub has it: without a prefix, with the causal masks that old versions saved; GPT2LMHeadModel loads what is written."""
    source = checkpoint_directory(tmp_path / "source", "gpt2")
    plain = load_file(source / "model.safetensors")
    buffers = {f"h.{i}.attn.bias": torch.ones(1, 1, 40, 40).tril() for i in range(3)}
    buffers |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}
    save_file(plain | buffers, source / "model.safetensors", metadata={"format": "pt"})
    assert convert.main([str(source), "--out", str(tmp_path / "ours"), "--check"]) == 0
    said = capsys.readouterr().out
    assert "dropped  nothing" in said and all(f"  {name} " in said for name in ("embeddings", "layers.2", "final"))
    assert convert.main([str(tmp_path / "ours"), "--to", "hf", "--out", str(tmp_path / "back"), "--check"]) == 0
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == plain.keys() and all(torch.equal(plain[name], back[name]) for name in plain)
    theirs, loading = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(loading.values()) and theirs.lm_head.weight is theirs.transformer.wte.weight
    one, other = (transformers.AutoTokenizer.from_pretrained(place) for place in (source, tmp_path / "back"))
    assert all(one(text)["input_ids"] == other(text)["input_ids"] for text in AWKWARD)


@pytest.mark.parametrize("tied", [True, False])
def test_a_gpt2_with_the_head_of_its_pretraining(tmp_path, capsys, tied):
    """`lm_head.weight` is the table of the words once more; where it is another it is left out and said."""
    source = checkpoint_directory(tmp_path / "source", "gpt2", prefix="transformer.")
    tensors = load_file(source / "model.safetensors")
    head = tensors["transformer.wte.weight"].clone()
    head[3, 5] += 0 if tied else 1
    save_file(tensors | {"lm_head.weight": head}, source / "model.safetensors", metadata={"format": "pt"})
    convert.main([str(source), "--out", str(tmp_path / "ours"), "--as", "body", "--check"])
    said = capsys.readouterr().out
    assert ("dropped  nothing" in said) == tied and ("lm_head.weight is another than the word vectors" in said) != tied


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"config.json": {"scale_attn_by_inverse_layer_idx": True}}, "scale_attn_by_inverse_layer_idx True is not supported"),
        ({"config.json": {"add_cross_attention": True}}, "add_cross_attention True is not supported"),
        ({"config.json": {"eos_token_id": 7}}, "has id 0 in the tokenizer, and eos_token_id of the model is 7"),
        ({"tokenizer_config.json": {"add_bos_token": True}}, "puts tokens around a text"),
        ({"tokenizer_config.json": {"tokenizer_class": "T5Tokenizer"}}, "tokenizer_class is 'T5Tokenizer'"),
    ],
)
def test_a_gpt2_that_is_another_is_refused(tmp_path, spoil, said):
    source = checkpoint_directory(tmp_path / "source", "gpt2")
    for name, change in spoil.items():
        write_json(source / name, json.loads((source / name).read_text(encoding="utf-8")) | change)
    with pytest.raises(UserError, match=said):
        convert.main([str(source), "--out", str(tmp_path / "ours")])
