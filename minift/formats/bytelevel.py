"""Byte-level BPE of RoBERTa and GPT-2, and XLM-R's Unigram tokenizer, in the files of a transformers checkpoint, read and written.

tokenizer.json           the whole tokenizer, read first where it is there; XLM-R's is read from it alone
vocab.json, merges.txt   of byte-level BPE: token -> id, and the pairs of pieces that are joined, in order
tokenizer_config.json    add_prefix_space (whether a text begins as if a blank stood before it), the special tokens by role,
                         tokenizer_class, added_tokens_decoder
special_tokens_map.json, added_tokens.json as in wordpiece.py

Of RoBERTa a text is <s> A </s>, a pair <s> A </s></s> B </s>, all of one token type; of GPT-2 it is A alone.
<mask> takes the blank before it along; where the files do not say whether it does, transformers 4 assumes it, as in pretraining,
and transformers 5 does not: here it does.
The ids are those of transformers' fast tokenizers (tests/reference/test_bytelevel.py). What would give others is refused by name.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from minift import pretrained
from minift.errors import UserError, brief, is_there
from minift.formats.wordpiece import (
    FLAGS,
    add_tokens,
    check_ids,
    max_length,
    recorded_tokens,
    special_tokens_of,
    with_special_tokens_map,
)
from minift.pretrained import Checkpoint, read_object, write_json

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
    "sentencepiece.bpe.model",  # is not read: of a checkpoint that has it alone one says so
)
# Classes of transformers, without "Fast" at the end; those behind the first take tokenizer.json as it is
CLASSES = ("RobertaTokenizer", "XLMRobertaTokenizer", "PreTrainedTokenizer", "TokenizersBackend")
CLASSES_OF_GPT2 = ("GPT2Tokenizer", "PreTrainedTokenizer", "TokenizersBackend")
DEFAULTS = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
END_OF_TEXT = "<|endoftext|>"  # of GPT-2
DEFAULTS_OF_GPT2 = dict.fromkeys(("bos", "eos", "unk"), END_OF_TEXT)
MASK = {"lstrip": True, "rstrip": False, "normalized": False, "single_word": False, "special": True}


def read_tokenizer(directory: Path, config, said: list[str] | None = None) -> Tokenizer:
    """RoBERTa's or XLM-R's, without truncation and padding. config: the model's, for the size of its table."""
    tokenizer, roles, settings = read_any(directory, config, CLASSES, DEFAULTS)
    if not is_there(directory / "tokenizer.json"):
        sep, cls = ((str(roles[role]), tokenizer.token_to_id(str(roles[role]))) for role in ("sep", "cls"))
        blank = settings["add_prefix_space"]
        tokenizer.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=blank)
    check_template(directory, tokenizer)
    if (number := tokenizer.token_to_id(str(roles["pad"]))) != config.pad_token_id:
        raise UserError(
            f"{directory}: the token {str(roles['pad'])!r} has id {number} in the tokenizer, and pad_token_id of the model is "
            f"{config.pad_token_id}; positions count from it, so the two must agree"
        )
    return tokenizer


def read_gpt2_tokenizer(directory: Path, config, said: list[str] | None = None) -> Tokenizer:
    """GPT-2's, which puts no token around a text."""
    tokenizer, roles, settings = read_any(directory, config, CLASSES_OF_GPT2, DEFAULTS_OF_GPT2)
    if settings.get("add_bos_token") or tokenizer.encode("").ids or tokenizer.encode("", "").ids:
        raise UserError(f"{directory}: the tokenizer puts tokens around a text (add_bos_token), and GPT-2's puts none")
    if (number := tokenizer.token_to_id(str(roles["eos"]))) != config.eos_token_id:
        raise UserError(
            f"{directory}: the end of a text, {str(roles['eos'])!r}, has id {number} in the tokenizer, and eos_token_id of the "
            f"model is {config.eos_token_id}; correct the one that is wrong"
        )
    return tokenizer


def read_any(directory: Path, config, classes: tuple[str, ...], defaults: dict[str, str]) -> tuple[Tokenizer, dict, dict]:
    """(the tokenizer, role -> special token, tokenizer_config.json with add_prefix_space).

    classes: of transformers, by which `tokenizer_class` may call it; without a tokenizer.json the first alone. defaults: of the
    special tokens, by role.
    """
    file = directory / "tokenizer_config.json"
    settings = read_object(file) if is_there(file) else {}
    whole = is_there(directory / "tokenizer.json")
    name = settings.get("tokenizer_class")
    kind = name.removesuffix("Fast") if isinstance(name, str) else name
    if kind is not None and kind not in classes[: None if whole else 1]:
        hint = "" if whole else f"; without a tokenizer.json minift reads {classes[0]} alone"
        raise UserError(f"{file}: tokenizer_class is {name!r}, which makes other tokens{hint}")
    settings = {"add_prefix_space": False} | settings
    if not isinstance(settings["add_prefix_space"], bool):
        raise UserError(f"{file}: add_prefix_space is {settings['add_prefix_space']!r}; true or false is expected")
    if "added_tokens_decoder" not in settings and is_there(directory / "special_tokens_map.json"):
        settings = with_special_tokens_map(directory / "special_tokens_map.json", settings)
    if "mask" in defaults and isinstance(settings.get("mask_token", defaults["mask"]), str):
        settings = settings | {"mask_token": {"content": settings.get("mask_token", defaults["mask"]), **MASK}}
    roles = special_tokens_of(file, settings, defaults)
    recorded = recorded_tokens(directory, settings, {str(token) for token in roles.values()})
    if whole:
        tokenizer = pretrained.read_tokenizer(directory)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    else:
        tokenizer = from_files(directory)
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}  # whose flags tokenizer.json says
    add_tokens(tokenizer, recorded, {role: token for role, token in roles.items() if str(token) not in known})
    if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        tokenizer.pre_tokenizer.add_prefix_space = settings["add_prefix_space"]
    check_ids(directory, tokenizer, recorded, config.vocab_size)
    return tokenizer, roles, settings


def tokenizer_of_bytes() -> Tokenizer:
    """Without a vocabulary: the id of a byte is the byte, and 256 is the end of a text."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves in a vocab.json
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def from_files(directory: Path) -> Tokenizer:
    """Byte-level BPE from vocab.json and merges.txt, without added tokens and template."""
    absent = [name for name in ("vocab.json", "merges.txt") if not is_there(directory / name)]
    if absent:
        model = "sentencepiece.bpe.model"
        hint = f"; {model} alone is not read, save the tokenizer again with transformers" if is_there(directory / model) else ""
        raise UserError(f"{directory}: there is no tokenizer.json, and no {' and no '.join(absent)}{hint}")
    vocabulary, merges = read_object(directory / "vocab.json"), read_merges(directory / "merges.txt")
    if not all(type(number) is int and number >= 0 for number in vocabulary.values()):
        raise UserError(f"{directory / 'vocab.json'}: an object of tokens and their ids is expected")
    try:
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{directory / 'merges.txt'}: does not belong to vocab.json ({brief(error)})") from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_bytes().decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); fetch it again") from None
    merges = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = tuple(line.split(" "))
        if len(pair) != 2 or not all(pair):
            raise UserError(f"{path}:{number}: two pieces with a blank between them are expected, found {line!r:.60}")
        merges.append(pair)
    return merges


def check_template(directory: Path, tokenizer: Tokenizer) -> None:
    single, pair = tokenizer.encode("").ids, tokenizer.encode("", "").ids
    if len(single) != 2 or pair != [*single, single[1], single[1]]:
        raise UserError(
            f"{directory}: the tokenizer is not RoBERTa's (one special token before a text and one after it, two between a pair)"
        )


# ---- writing ----


def write_tokenizer(directory: Path, checkpoint: Checkpoint, config) -> None:
    """tokenizer.json and tokenizer_config.json; of byte-level BPE vocab.json and merges.txt as well."""
    tokenizer = checkpoint.tokenizer
    cls, sep = tokenizer.encode("").tokens
    roles = {"bos_token": cls, "eos_token": sep, "sep_token": sep, "cls_token": cls}
    roles |= {"pad_token": tokenizer.id_to_token(config.pad_token_id)}
    roles |= {f"{role}_token": DEFAULTS[role] for role in ("unk", "mask") if tokenizer.token_to_id(DEFAULTS[role]) is not None}
    write_any(directory, checkpoint, config, "RobertaTokenizer", roles)


def write_gpt2_tokenizer(directory: Path, checkpoint: Checkpoint, config) -> None:
    end, filler = map(checkpoint.tokenizer.id_to_token, (config.eos_token_id, config.pad_token_id))
    roles = {"bos_token": end, "eos_token": end, "unk_token": end, "pad_token": filler}
    write_any(directory, checkpoint, config, "GPT2Tokenizer", roles)


def write_any(directory: Path, checkpoint: Checkpoint, config, kind: str, roles: dict[str, str]) -> None:
    """kind: transformers' class of byte-level BPE. roles: the special tokens."""
    tokenizer, byte_level = checkpoint.tokenizer, isinstance(checkpoint.tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
    added = tokenizer.get_added_tokens_decoder()
    described = {
        str(number): {flag: getattr(token, flag) for flag in ("content", *FLAGS)} for number, token in sorted(added.items())
    }
    more = [token.content for token in added.values() if token.special and token.content not in roles.values()]
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": kind if byte_level else "PreTrainedTokenizerFast",
            "model_max_length": max_length(checkpoint) or config.max_length,
            "model_input_names": ["input_ids", "attention_mask"],
            **({"add_prefix_space": tokenizer.pre_tokenizer.add_prefix_space} if byte_level else {}),
            **roles,
            **({"additional_special_tokens": more} if more else {}),
            "added_tokens_decoder": described,
        },
    )
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    if byte_level:
        model = json.loads(tokenizer.to_str())["model"]
        write_json(directory / "vocab.json", model["vocab"])
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
