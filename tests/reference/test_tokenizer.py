"""The converted tokenizer against transformers' fast one, on strings that break tokenizers."""

import json
from pathlib import Path

import pytest
import transformers
from tiny import CONFIG, VOCABULARY, converted_directory, huggingface_directory, write_json

import convert
from minift.errors import UserError
from minift.formats import wordpiece
from minift.formats.huggingface import write as write_huggingface
from minift.formats.wordpiece import read_tokenizer
from minift.pretrained import read

MINILM = Path(__file__).parents[2] / "weights" / "minilm-l6"
AWKWARD = [
    "",
    " ",
    "Plain words, and a full stop.",
    "  leading, trailing and   many\tblanks\u00a0no-break\u3000wide  ",
    "line\nbreaks\r\nof both kinds",
    "Crème BRÛLÉE à l’École, Ærøskøbing, Straße, İstanbul, ǅ",
    "e\u0301 combining accent, ﬁ ligature, ½ ﹪ ① Ⅷ",
    "中文和日本語のテキスト 한국어 混じり words",
    "\U00020000 rare ideograph, 🙂👩‍👩‍👧 emoji with joiners, \ufe0f",
    "zero\u200bwidth \u00adsoft hyphen \ufeff mark",
    "control \x07 bell \x1b escape \x00 nul \ufffd replacement",
    "don't can't it's 'quoted' “curly” «angle» — dash – en… dots...",
    "user@example.com https://example.com/a?b=c#d 3.14 1,000,000 50% $5 €5 C++ a_b",
    "[CLS] spelled [SEP] out [MASK] [PAD] [UNK] [cls] [unused1]",
    "unaffable" * 30,
    "x" * 150,
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "עברית العربية हिन्दी ไทย ελληνικά русский",
    "##ly ## # ##",
]
PAIRS = [(a, b) for a, b in zip(AWKWARD, reversed(AWKWARD), strict=True)]


class Room:
    """The configuration of a model whose table is large enough for any vocabulary here."""

    vocab_size = 10_000


def assert_same(ours, theirs):
    for text in AWKWARD:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
        assert ours.encode(text).tokens == theirs.convert_ids_to_tokens(theirs(text)["input_ids"]), text
    for first, second in PAIRS:
        encoded, expected = ours.encode(first, second), theirs([first], [second])  # theirs takes a lone "" for no second text
        assert encoded.ids == expected["input_ids"][0] and encoded.type_ids == expected["token_type_ids"][0], (first, second)


@pytest.mark.parametrize(
    "said",
    [
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"do_lower_case": True, "tokenize_chinese_chars": False},
    ],
)
@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
def test_built_from_a_vocabulary_or_read_from_json(tmp_path, said, form):
    directory = huggingface_directory(tmp_path / "checkpoint")
    vocabulary = [*VOCABULARY, "É", "é", "cr", "##è", "##me", "中", "文", "Plain", "plain", "İ", "##stanbul", "'", "’"]
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in dict.fromkeys(vocabulary)), encoding="utf-8")
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **said})
    theirs = transformers.AutoTokenizer.from_pretrained(directory, use_fast=True)
    if form == "tokenizer.json":  # one that contradicts tokenizer_config.json, which wins
        stored = json.loads(theirs.backend_tokenizer.to_str())
        stored["normalizer"]["lowercase"] = not said["do_lower_case"]
        write_json(directory / "tokenizer.json", stored)
        theirs = transformers.AutoTokenizer.from_pretrained(directory, use_fast=True)

    assert_same(read_tokenizer(directory, Room), theirs)


def test_the_embedded_tokenizer_out_and_in_again(tmp_path):
    checkpoint = read(MINILM)
    write_huggingface(tmp_path / "hf", checkpoint)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf", use_fast=True)
    assert theirs.model_max_length == 512
    assert_same(checkpoint.tokenizer, theirs)
    assert_same(read_tokenizer(tmp_path / "hf", checkpoint.body().config), theirs)
    (tmp_path / "hf" / "tokenizer.json").unlink()
    assert_same(read_tokenizer(tmp_path / "hf", checkpoint.body().config), theirs)


@pytest.mark.parametrize("normalizer", [None, {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}])
def test_a_tokenizer_with_a_normalizer_of_its_own_is_left_as_it_is(tmp_path, normalizer):
    checkpoint = read(MINILM)
    write_huggingface(tmp_path / "hf", checkpoint)
    stored = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    write_json(tmp_path / "hf" / "tokenizer.json", stored | {"normalizer": normalizer})
    checkpoint.tokenizer = read_tokenizer(tmp_path / "hf", checkpoint.body().config)
    assert json.loads(checkpoint.tokenizer.to_str())["normalizer"] == normalizer
    write_huggingface(tmp_path / "again", checkpoint)
    assert_same(checkpoint.tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path / "again", use_fast=True))


def test_stored_truncation_and_padding_are_taken_out(tmp_path):
    directory = huggingface_directory(tmp_path / "checkpoint")
    tokenizer = read_tokenizer(directory, CONFIG)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(directory / "tokenizer.json"))
    assert len(read_tokenizer(directory, CONFIG).encode("the film was very good").ids) == 7


# ---- side files ----

TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
N = len(VOCABULARY)
ADDED = [
    "the [new] film was covid good, covids and [NEW] too",
    "[e1]the[e1] film [e1]",
    "a Covid-19 COVID covid19 wide_token",
    "<s> spelled </s> out <mask> <pad>",
    "[e1] [new] [e1]covid[e1]",
]
SIDE_FILES = {
    "added_tokens.json": {"added_tokens.json": {"[new]": N, "covid": N + 1, "Wide_Token": N + 2}},
    "added_tokens.json, one of them special": {
        "added_tokens.json": {"[e1]": N + 1, "covid": N},
        "special_tokens_map.json": {"additional_special_tokens": ["[e1]"]},
    },
    "added_tokens_decoder": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "0": {**TOKEN, "content": "[PAD]", "special": True, "normalized": False},
                str(N): {**TOKEN, "content": "covid", "single_word": True},
                str(N + 1): {**TOKEN, "content": "[e1]", "lstrip": True, "rstrip": True, "special": True, "normalized": False},
                str(N + 2): {**TOKEN, "content": "[new]", "normalized": False},
            }
        }
    },
    "added_tokens_decoder beside stale files": {
        "tokenizer_config.json": {"added_tokens_decoder": {str(N): {**TOKEN, "content": "covid"}}},
        "added_tokens.json": {"[new]": N},
        "special_tokens_map.json": {"cls_token": "[SEP]", "additional_special_tokens": ["the"]},
    },
    "additional_special_tokens": {
        "tokenizer_config.json": {"additional_special_tokens": ["[e1]", {"__type": "AddedToken", **TOKEN, "content": "[new]"}]}
    },
    "both lists of additional tokens": {
        "tokenizer_config.json": {"additional_special_tokens": ["[new]", "[e1]"]},
        "special_tokens_map.json": {"additional_special_tokens": [{**TOKEN, "content": "[new]"}, "[e1]"]},
    },
    "other special tokens": {"special_tokens_map.json": {"cls_token": "good", "sep_token": {**TOKEN, "content": "bad"}}},
    "other special tokens by tokenizer_config.json": {"tokenizer_config.json": {"cls_token": "good", "sep_token": "bad"}},
}


@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("case", SIDE_FILES)
def test_side_files(tmp_path, case, form):
    directory = huggingface_directory(tmp_path / "checkpoint")
    if form == "tokenizer.json" and "other" not in case:  # without what the side files add
        transformers.BertTokenizerFast(str(directory / "vocab.txt")).save_pretrained(tmp_path / "plain")
        (directory / "tokenizer.json").write_bytes((tmp_path / "plain" / "tokenizer.json").read_bytes())
    for name, content in SIDE_FILES[case].items():
        common = {"tokenizer_class": "BertTokenizer", "do_lower_case": True} if name == "tokenizer_config.json" else {}
        write_json(directory / name, common | content)
    ours, theirs = read_tokenizer(directory, Room), transformers.AutoTokenizer.from_pretrained(directory, use_fast=True)
    assert_same(ours, theirs)
    for text in ADDED:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
    assert ours.get_vocab() == theirs.get_vocab()


def test_two_lists_of_additional_tokens_that_differ(tmp_path):
    """transformers 4 adds them up, and 5 takes one of them."""
    directory = huggingface_directory(tmp_path / "checkpoint")
    write_json(directory / "tokenizer_config.json", {"additional_special_tokens": ["[e1]"]})
    write_json(directory / "special_tokens_map.json", {"additional_special_tokens": [{**TOKEN, "content": "[new]"}]})
    with pytest.raises(UserError, match=r"special_tokens_map\.json: additional_special_tokens are .*so make the two equal"):
        read_tokenizer(directory, Room)


@pytest.mark.parametrize("name", wordpiece.CLASSES)
def test_every_class_that_is_taken_is_bert_s(tmp_path, name):
    directory = huggingface_directory(tmp_path / "checkpoint")
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": name})
    said = []
    ours = read_tokenizer(directory, Room, said)
    assert_same_ids(ours, transformers.AutoTokenizer.from_pretrained(directory, use_fast=True))
    assert said == ["lower-casing assumed, as transformers does where tokenizer_config.json has no do_lower_case"]


def assert_same_ids(ours, theirs):
    """Some of the classes return no token types."""
    for text in AWKWARD:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text


@pytest.mark.parametrize("place", ["tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("name", ["BertJapaneseTokenizer", "RobertaTokenizerFast", "PreTrainedTokenizerFast", "MyTokenizer", 3])
def test_another_class_is_refused(tmp_path, place, name):
    directory = huggingface_directory(tmp_path / "checkpoint")
    write_json(directory / "tokenizer_config.json", {})
    write_json(directory / place, json.loads((directory / place).read_text()) | {"tokenizer_class": name})
    with pytest.raises(UserError, match=rf"{place}: tokenizer_class is {name!r}"):
        read_tokenizer(directory, CONFIG)


def test_the_tokenizer_json_of_no_class_is_taken_as_it_is(tmp_path):
    directory = huggingface_directory(tmp_path / "checkpoint")
    tokenizer = read_tokenizer(directory, CONFIG)
    stored = json.loads(tokenizer.to_str())
    stored["normalizer"]["lowercase"] = False
    write_json(directory / "tokenizer.json", stored)
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True})
    ours = read_tokenizer(directory, CONFIG)
    assert_same_ids(ours, transformers.AutoTokenizer.from_pretrained(directory))
    assert ours.encode("The").tokens[1] == "[UNK]"


@pytest.mark.parametrize("stored", [True, False])
def test_lower_casing_that_is_assumed_is_said(tmp_path, stored):
    """transformers takes do_lower_case as true where it is not said, against a tokenizer.json too."""
    directory = huggingface_directory(tmp_path / "checkpoint")
    tokenizer = json.loads(read_tokenizer(directory, CONFIG).to_str())
    tokenizer["normalizer"]["lowercase"] = stored
    write_json(directory / "tokenizer.json", tokenizer)
    (directory / "tokenizer_config.json").unlink()
    said = []
    ours = read_tokenizer(directory, CONFIG, said)
    assert_same(ours, transformers.AutoTokenizer.from_pretrained(directory, use_fast=True))
    assert ours.encode("THE").tokens == ["[CLS]", "the", "[SEP]"]
    assert [note.partition(",")[0] for note in said] == ([] if stored else ["lower-casing assumed"])


def test_a_vocabulary_that_is_not_tokenizer_json_s_is_said(tmp_path):
    directory = huggingface_directory(tmp_path / "checkpoint")
    (directory / "tokenizer.json").write_text(read_tokenizer(directory, CONFIG).to_str())
    said = []
    read_tokenizer(directory, Room, said)
    assert said == []
    lines = ["wolf" if token == "film" else token for token in VOCABULARY]
    (directory / "vocab.txt").write_text("".join(f"{line}\n" for line in [*lines, "newer"]), encoding="utf-8")
    ours = read_tokenizer(directory, Room, said)
    assert_same(ours, transformers.AutoTokenizer.from_pretrained(directory, use_fast=True))
    assert len(said) == 1 and "vocab.txt has 2 other tokens (first 'wolf', id" in said[0], said


def with_vocabulary(directory, lines, **files):
    huggingface_directory(directory)
    (directory / "vocab.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for name, content in files.items():
        write_json(directory / f"{name}.json", content)
    return directory


DUPLICATED = [*VOCABULARY[:6], VOCABULARY[8], *VOCABULARY[6:]]  # one token on two lines: the id of the first is nobody's
REFUSED_TOKENS = {
    "an id that the vocabulary does not give": (
        VOCABULARY,
        {"added_tokens": {"covid": N + 3}},
        f"the added token 'covid' is recorded with id {N + 3}, and gets {N}",
    ),
    "an id that is taken": (VOCABULARY, {"added_tokens": {"covid": 7}}, "the added token 'covid' is recorded with id 7, and gets"),
    "two tokens of one id": (DUPLICATED, {"added_tokens": {"covid": N}}, f"of the tokenizer have one id, {N}"),
    "a token beyond the table": (
        VOCABULARY,
        {"added_tokens": {f"w{i}": N + i for i in range(4)}},
        f"'w3' of the tokenizer has id {N + 3}",
    ),
    "a duplicate, which hides it from a count": (
        [*DUPLICATED, "a1", "a2"],
        {},
        f"'a2' of the tokenizer has id {N + 2}, and the table",
    ),
}


@pytest.mark.parametrize("case", REFUSED_TOKENS)
def test_ids_that_the_model_cannot_have(tmp_path, case):
    class Config:
        vocab_size = N + 2

    lines, files, message = REFUSED_TOKENS[case]
    with pytest.raises(UserError) as error:
        read_tokenizer(with_vocabulary(tmp_path / "checkpoint", lines, **files), Config)
    assert message in str(error.value) and "\n" not in str(error.value), error.value


# ---- out ----

LISTS = {
    "as it is": (VOCABULARY, {}),
    "a duplicate": (DUPLICATED, {}),
    "empty lines": ([*VOCABULARY[:9], "", "", *VOCABULARY[9:], ""], {}),
    "added tokens": (
        VOCABULARY,
        {"added_tokens": {"covid": N, "[e1]": N + 1}, "special_tokens_map": {"additional_special_tokens": ["[e1]"]}},
    ),
    "a piece that was added": (VOCABULARY, {"added_tokens": {"##zz": N, "zz": N + 1}}),
    "a filler's name that is taken": ([f"[unused{6}]", *DUPLICATED], {}),
}


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("use_fast", [True, False])
@pytest.mark.parametrize("case", LISTS)
def test_ids_after_a_round_trip(tmp_path, case, use_fast, form):
    """Out and in again by any of the files, and by transformers' slow tokenizer, which reads vocab.txt alone."""
    lines, files = LISTS[case]
    source = with_vocabulary(tmp_path / "source", lines, **files)
    checkpoint = read(converted_directory(tmp_path / "bert"))
    checkpoint.tokenizer = read_tokenizer(source, Room)
    write_huggingface(tmp_path / "hf", checkpoint)
    if form == "vocab.txt":
        (tmp_path / "hf" / "tokenizer.json").unlink()
    first, second = (transformers.AutoTokenizer.from_pretrained(d, use_fast=use_fast) for d in (source, tmp_path / "hf"))
    again = read_tokenizer(tmp_path / "hf", Room)
    for text in [*AWKWARD, *ADDED, "the film was good", "zz ##zz azz a##zz", "covid19 [e1]the"]:
        expected = checkpoint.tokenizer.encode(text).ids
        assert second(text)["input_ids"] == first(text)["input_ids"], text
        assert again.encode(text).ids == expected, text
        if use_fast:
            assert second(text)["input_ids"] == expected, text


def test_a_line_break_in_a_token_is_refused(tmp_path):
    checkpoint = read(converted_directory(tmp_path / "bert"))
    stored = json.loads(checkpoint.tokenizer.to_str())
    stored["model"]["vocab"]["a\nb"] = N
    checkpoint.tokenizer = checkpoint.tokenizer.from_str(json.dumps(stored))
    with pytest.raises(UserError, match=r"holds a line break, which vocab\.txt cannot"):
        write_huggingface(tmp_path / "hf", checkpoint)
    assert not (tmp_path / "hf").exists()


def test_the_length_that_the_run_has_read_is_written(tmp_path):
    checkpoint = read(converted_directory(tmp_path / "bert"))
    write_huggingface(tmp_path / "plain", checkpoint)
    checkpoint.settings = {"max_length": 8}
    write_huggingface(tmp_path / "run", checkpoint)
    for place, expected in (("plain", CONFIG.max_position_embeddings), ("run", 8)):
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / place)
        assert theirs.model_max_length == expected
        assert len(theirs("good " * 100, truncation=True)["input_ids"]) == expected
        assert list(theirs("good").keys()) == ["input_ids", "token_type_ids", "attention_mask"]


def test_assumptions_are_printed(tmp_path, capsys):
    source = with_vocabulary(tmp_path / "source", [*DUPLICATED[:-1]], tokenizer_config={})
    convert.main([str(source), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "note     lower-casing assumed" in printed
    assert "note     vocab.txt has 1 tokens on more than one line; the last line counts" in printed
