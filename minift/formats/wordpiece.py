"""BERT's WordPiece tokenizer in the files of a transformers checkpoint, read and written.

tokenizer.json           the whole tokenizer, read first where it is there
vocab.txt                one token a line, the number of the line (from 0) is its id; of two equal lines the last counts
tokenizer_config.json    case and accents, the special tokens by role, tokenizer_class, added_tokens_decoder
special_tokens_map.json  the special tokens by role; they win, but only where there is no added_tokens_decoder
added_tokens.json        token -> id of what was added to the vocabulary; read where there is no added_tokens_decoder

The ids are those of transformers' fast tokenizer (tests/reference/test_tokenizer.py). What would give other ids is refused by name:
another tokenizer_class, an added token that does not get the id recorded for it, an id beyond the model's table.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from minift import pretrained
from minift.data.examples import check_characters
from minift.errors import UserError, is_there
from minift.pretrained import Checkpoint, read_object, write_json

FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "added_tokens.json", "special_tokens_map.json")

# Classes of transformers, without "Fast" at the end, that read vocab.txt exactly as BertTokenizer does
CLASSES = (
    *("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "ConvBertTokenizer", "LxmertTokenizer"),
    *("DPRQuestionEncoderTokenizer", "DPRContextEncoderTokenizer", "DPRReaderTokenizer"),
)
PLAIN = ("PreTrainedTokenizer", "TokenizersBackend")  # which take tokenizer.json as it is

# tokenizers' BertNormalizer -> (field of tokenizer_config.json, what transformers takes where it is absent)
NORMALIZER = {
    "lowercase": ("do_lower_case", True),
    "strip_accents": ("strip_accents", None),
    "handle_chinese_chars": ("tokenize_chinese_chars", True),
}
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # in the order in which transformers adds them
DEFAULTS = {role: f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token


# ---- reading ----


def read_tokenizer(directory: Path, config, said: list[str] | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint. Truncation and padding that it has stored are taken out: train.py sets its own.

    config: the model's, for the size of its table. said: takes what was assumed, and where two files contradict each other.
    """
    said = [] if said is None else said
    file = directory / "tokenizer_config.json"
    settings = read_object(file) if is_there(file) else {}
    whole = is_there(directory / "tokenizer.json")
    plain = check_class(directory, settings, whole)
    check_normalizer(file, settings)
    if "added_tokens_decoder" not in settings and is_there(directory / "special_tokens_map.json"):
        settings = with_special_tokens_map(directory / "special_tokens_map.json", settings)
    roles = special_tokens_of(file, settings, {} if plain else DEFAULTS)
    recorded = recorded_tokens(directory, settings, {str(token) for token in roles.values()})

    if whole:
        tokenizer = pretrained.read_tokenizer(directory)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        compare_vocabularies(directory, tokenizer, said)
    elif is_there(directory / "vocab.txt"):
        tokenizer = from_vocabulary(directory / "vocab.txt", roles, recorded, said)
    else:
        raise UserError(f"{directory}: there is no tokenizer.json and no vocab.txt")
    add_tokens(tokenizer, recorded, roles)
    if not whole:
        cls, sep = str(roles["cls"]), str(roles["sep"])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls}:0 $A:0 {sep}:0",
            pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
        )
    if type(tokenizer.model) is not models.WordPiece or len(tokenizer.encode("").tokens) != 2:
        raise UserError(
            f"{directory}: the tokenizer is not BERT's (WordPiece, with one special token before a text and one after it)"
        )
    check_ids(directory, tokenizer, recorded, config.vocab_size)
    if not plain:
        normalize(tokenizer, settings, said, whole)
    return tokenizer


def check_class(directory: Path, settings: dict, whole: bool) -> bool:
    """Whether transformers takes tokenizer.json as it is; a class that reads the files in a way of its own is refused.

    settings: tokenizer_config.json; where it names no class, config.json may. whole: whether there is a tokenizer.json.
    """
    file, name = directory / "tokenizer_config.json", settings.get("tokenizer_class")
    if name is None and is_there(directory / "config.json"):
        file = directory / "config.json"
        name = read_object(file).get("tokenizer_class")
    kind = name.removesuffix("Fast") if isinstance(name, str) else name
    if kind is not None and kind not in (*CLASSES, *(PLAIN if whole else ())):
        raise UserError(f"{file}: tokenizer_class is {name!r}, which makes other tokens; minift reads {CLASSES[0]} and its like")
    if name is None and settings.get("auto_map"):
        raise UserError(f"{file}: auto_map: the tokenizer is made by code of the checkpoint's own, which minift does not run")
    return kind in PLAIN


def check_normalizer(file: Path, settings: dict) -> None:
    for field, absent in NORMALIZER.values():
        value = settings.get(field, absent)
        if not isinstance(value, bool) and not (value is None and field == "strip_accents"):
            raise UserError(f"{file}: {field} is {value!r}; true or false is expected")


def with_special_tokens_map(file: Path, settings: dict) -> dict:
    """tokenizer_config.json after special_tokens_map.json, which wins by role."""
    there, more = read_object(file), "additional_special_tokens"
    lists = [one[more] for one in (settings, there) if isinstance(one.get(more), list)]
    contents = [[token.get("content") if isinstance(token, dict) else token for token in tokens] for tokens in lists]
    if len(contents) == 2 and contents[0] != contents[1]:
        raise UserError(
            f"{file}: {more} are {contents[1]!r:.60}, and {contents[0]!r:.60} in tokenizer_config.json; transformers 4 adds them "
            "up, 5 does not, so make the two equal"
        )
    return settings | there | ({more: lists[0]} if len(lists) == 2 else {})


def special_tokens_of(file: Path, settings: dict, defaults: dict[str, str]) -> dict[str, AddedToken]:
    """Role -> special token, in the order in which transformers adds them; additional ones under numbers."""
    found = {}
    for role in ROLES:
        value = settings.get(f"{role}_token", defaults.get(role))
        if value is None and (role in ("bos", "eos", "pad", "mask") or role not in defaults):
            continue
        found[role] = as_token(file, f"{role}_token", value)
    more = settings.get("additional_special_tokens") or []
    extra = settings.get("extra_special_tokens") or []
    for name, values in (("additional_special_tokens", more), ("extra_special_tokens", extra)):
        if not isinstance(values, list | dict):
            raise UserError(f"{file}: {name} is {values!r:.60}; a list of tokens is expected")
        for value in values.values() if isinstance(values, dict) else values:
            found[str(len(found))] = as_token(file, name, value)
    return found


def as_token(file: Path, what: str, value: object, special: bool = True) -> AddedToken:
    """A token that is written as a string, or as an object with the flags of an added token."""
    content, flags = value, {"special": special, "normalized": not special}
    if isinstance(value, dict):
        content, flags = value.get("content"), {flag: value[flag] for flag in FLAGS if flag in value}
    if not isinstance(content, str) or not content or not all(isinstance(flag, bool) for flag in flags.values()):
        raise UserError(f"{file}: {what} is {value!r:.60}; a token is expected")
    check_characters(content, f"{file}: {what}")
    return AddedToken(content, **flags)


def recorded_tokens(directory: Path, settings: dict, special: set[str]) -> dict[int, AddedToken]:
    """Id -> token, in the order of the ids, of what was added to the vocabulary."""
    file, found = directory / "tokenizer_config.json", {}
    if "added_tokens_decoder" in settings:
        stored = settings["added_tokens_decoder"]
        if not isinstance(stored, dict) or not all(number.isdecimal() for number in stored):
            raise UserError(f"{file}: added_tokens_decoder is {stored!r:.60}; an object of ids and tokens is expected")
        found = {int(number): as_token(file, f"added_tokens_decoder {number}", token) for number, token in stored.items()}
    elif is_there(file := directory / "added_tokens.json"):
        for token, number in read_object(file).items():
            if type(number) is not int or number < 0 or number in found:
                raise UserError(f"{file}: the id of {token!r} is {number!r:.20}; a number of its own is expected")
            found[number] = as_token(file, "a token", token, token in special)
    return dict(sorted(found.items()))


def compare_vocabularies(directory: Path, tokenizer: Tokenizer, said: list[str]) -> None:
    """Say where vocab.txt, which transformers passes over, is not the vocabulary of tokenizer.json."""
    file = directory / "vocab.txt"
    if not is_there(file):
        return
    stands = {number: token for token, number in tokenizer.get_vocab().items()}
    largest = max(stands, default=-1)
    differ = [(i, line) for line, i in read_vocabulary(file).items() if line and (i > largest or stands.get(i, line) != line)]
    if differ:
        number, token = differ[0]
        said.append(
            f"tokenizer.json is read, as transformers does, and vocab.txt has {len(differ)} other tokens (first {token!r}, id "
            f"{number}); if vocab.txt is the newer one, delete tokenizer.json"
        )


def read_vocabulary(path: Path) -> dict[str, int]:
    """Token -> id."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return {line: i for i, line in enumerate(lines[:-1] if lines[-1] == "" else lines)}


def from_vocabulary(path: Path, roles: dict[str, AddedToken], recorded: dict[int, AddedToken], said: list[str]) -> Tokenizer:
    """BERT's tokenizer from vocab.txt, without its added tokens."""
    vocabulary = read_vocabulary(path)
    known = vocabulary.keys() | {str(token) for token in recorded.values()}
    absent = [str(token) for role, token in roles.items() if role in DEFAULTS and str(token) not in known]
    if absent or str(roles["unk"]) not in vocabulary:
        raise UserError(f"{path}: the vocabulary lacks {', '.join(absent or [str(roles['unk'])])}")
    if holes := max(vocabulary.values()) + 1 - len(vocabulary):
        said.append(f"vocab.txt has {holes} tokens on more than one line; the last line counts, as in transformers")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=str(roles["unk"])))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def add_tokens(tokenizer: Tokenizer, recorded: dict[int, AddedToken], roles: dict[str, AddedToken]) -> None:
    """Add the recorded tokens, then the special ones, in transformers' order. Known ones are passed over."""
    special = {str(token) for token in roles.values()}
    for token in (*recorded.values(), *roles.values()):
        token.special = token.special or str(token) in special
        tokenizer.add_tokens([token])


def check_ids(directory: Path, tokenizer: Tokenizer, recorded: dict[int, AddedToken], rows: int) -> None:
    """Every recorded token has its id, no two tokens share one, and the model's table has a row for each."""
    for number, token in recorded.items():
        if (given := tokenizer.token_to_id(str(token))) != number:
            raise UserError(f"{directory}: the added token {str(token)!r} is recorded with id {number}, and gets {given} in the "
                            "vocabulary that is there; save the tokenizer again with transformers")  # fmt: skip
    by_id: dict[int, str] = {}
    for token, number in tokenizer.get_vocab().items():
        if number in by_id:
            raise UserError(f"{directory}: the tokens {by_id[number]!r} and {token!r} of the tokenizer have one id, {number}")
        by_id[number] = token
    by_id = {number: token for number, token in by_id.items() if token}  # an empty line of vocab.txt stands for no token
    if (largest := max(by_id, default=0)) >= rows:
        raise UserError(f"{directory}: the token {by_id[largest]!r} of the tokenizer has id {largest}, and the table of the model "
                        f"{rows} rows, so ids up to {rows - 1}")  # fmt: skip


def normalize(tokenizer: Tokenizer, settings: dict, said: list[str], whole: bool) -> None:
    """Case and accents as tokenizer_config.json says, whatever tokenizer.json does."""
    state = bert_normalizer(tokenizer)
    expected = state | {ours: settings.get(theirs, absent) for ours, (theirs, absent) in NORMALIZER.items()}
    if state and expected != state:
        tokenizer.normalizer = normalizers.BertNormalizer(**expected)
    if state and "do_lower_case" not in settings and (not whole or expected["lowercase"] != state["lowercase"]):
        said.append("lower-casing assumed, as transformers does where tokenizer_config.json has no do_lower_case")


def bert_normalizer(tokenizer: Tokenizer) -> dict:
    """The settings of a tokenizer's BertNormalizer; empty where it has another one or none, which is then left as it is."""
    if not isinstance(tokenizer.normalizer, normalizers.BertNormalizer):
        return {}
    state = json.loads(tokenizer.normalizer.__getstate__())
    return {name: value for name, value in state.items() if name != "type"}


# ---- writing ----


def write_tokenizer(directory: Path, checkpoint: Checkpoint, config) -> None:
    """The same files. transformers gives the same ids with any of them: fast or slow, from tokenizer.json or from vocab.txt."""
    tokenizer = checkpoint.tokenizer
    state, roles = bert_normalizer(tokenizer), special_tokens(tokenizer, config.pad_token_id)
    added = tokenizer.get_added_tokens_decoder()
    described = {number: {flag: getattr(token, flag) for flag in ("content", *FLAGS)} for number, token in sorted(added.items())}
    more = [token.content for token in added.values() if token.special and token.content not in roles.values()]
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "BertTokenizer" if state else "PreTrainedTokenizerFast",
            "model_max_length": max_length(checkpoint) or config.max_position_embeddings,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            **{theirs: state[ours] for ours, (theirs, _) in NORMALIZER.items() if state},
            **roles,
            **({"additional_special_tokens": more} if more else {}),
            "added_tokens_decoder": {str(number): token for number, token in described.items()},
        },
    )
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    (directory / "vocab.txt").write_text("".join(f"{line}\n" for line in vocabulary_lines(tokenizer)), encoding="utf-8")


def max_length(checkpoint: Checkpoint) -> int | None:
    """Tokens that a run has read of a text; None for a plain model."""
    return ((checkpoint.task or {}) | (checkpoint.settings or {})).get("max_length")


def vocabulary_lines(tokenizer: Tokenizer) -> list[str]:
    """The lines of vocab.txt: the token of each id, and where there is none a filler, so that those behind keep theirs.

    An added token stands in it only where it would else leave a hole: as a line it could become a piece of a word.
    """
    plain, added = tokenizer.get_vocab(with_added_tokens=False), tokenizer.get_added_tokens_decoder()
    if strange := next((token for token in plain if "\n" in token or "\r" in token), None):
        raise UserError(f"the token {strange!r} of the tokenizer holds a line break, which vocab.txt cannot")
    lines = {number: token for token, number in plain.items()}
    behind = [number for number in added if number > max(lines)]  # transformers numbers them on from the last line
    for number in range(min(behind, default=max(lines) + 1)):
        if number not in lines:
            lines[number] = added[number].content if number in added else filler(number, plain)
    return [lines[number] for number in sorted(lines)]


def filler(number: int, taken: dict[str, int]) -> str:
    """A line that no text can match, as it holds brackets: BERT's own name for a row that is not in use."""
    line = f"[unused{number}]"
    while line in taken:
        line = f"[{line}]"
    return line


def special_tokens(tokenizer: Tokenizer, pad: int) -> dict[str, str]:
    """The five special tokens by role, read off what the tokenizer does."""
    cls, sep = tokenizer.encode("").tokens
    unk = tokenizer.model.unk_token
    roles = {"unk_token": unk, "sep_token": sep, "pad_token": tokenizer.id_to_token(pad), "cls_token": cls}
    return roles | {"mask_token": "[MASK]" if tokenizer.token_to_id("[MASK]") is not None else unk}
