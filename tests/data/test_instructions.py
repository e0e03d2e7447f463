"""minift.data.instructions: three forms of rows, and the ids and the mask that are made of them together."""

import json

import numpy as np
import pytest

from minift.data.instructions import Piece, asked, conversation, read_instructions, tokenised
from minift.data.layout import Layout
from minift.errors import UserError
from minift.formats.bytelevel import tokenizer_of_bytes

TOKENIZER, END = tokenizer_of_bytes(), 256


def written(path, *rows) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(path)


def text_of(ids: np.ndarray) -> str:
    return TOKENIZER.decode(ids.tolist(), skip_special_tokens=False)


SAID = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "a?"},
    {"role": "assistant", "content": "A."},
    {"role": "user", "content": "b?"},
    {"role": "assistant", "content": "B."},
]
FORMS = {  # row -> (its text, what counts of it)
    "instruction": (
        {"instruction": "Sum.", "input": "1 2", "output": "3"},
        "### Instruction:\nSum.\n\n### Input:\n1 2\n\n### Response:\n3<|endoftext|>",
        ["3<|endoftext|>"],
    ),
    "without input": (
        {"instruction": "Hi.", "output": "Hello."},
        "### Instruction:\nHi.\n\n### Response:\nHello.<|endoftext|>",
        ["Hello.<|endoftext|>"],
    ),
    "prompt": ({"prompt": "2+2=", "completion": "4"}, "2+2=4<|endoftext|>", ["4<|endoftext|>"]),
    "no prompt": ({"prompt": "", "completion": "é"}, "<|endoftext|>é<|endoftext|>", ["é<|endoftext|>"]),
    "messages": (
        {"messages": SAID},
        "### System:\nBe short.\n\n### Instruction:\na?\n\n### Response:\nA.<|endoftext|>"
        "### Instruction:\nb?\n\n### Response:\nB.<|endoftext|>",
        ["A.<|endoftext|>", "B.<|endoftext|>"],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_counts_is_the_answers_with_their_ends_and_no_heading(tmp_path, form):
    """Traps: a mask that is one token off never trains the first token of an answer, or trains the end of the heading; one that
    leaves out the end of text never teaches to stop.
    """
    row, text, answers = FORMS[form]
    rows = read_instructions(written(tmp_path / "a.jsonl", row), Layout())
    ((ids, counts),) = tokenised(TOKENIZER, rows.pieces, END)
    assert text_of(ids) == text and len(ids) == len(counts)
    edges = np.flatnonzero(np.diff(counts, prepend=False, append=False))
    assert [text_of(ids[start:end]) for start, end in edges.reshape(-1, 2)] == answers
    prompt, _ = tokenised(TOKENIZER, [asked(rows.pieces[0])], END)[0]
    assert (ids[: len(prompt)] == prompt).all() and counts[len(prompt) :].all(), "the ids that the model is asked with"


def test_pieces_are_tokenised_apart_so_that_a_prompt_is_the_same_when_it_is_asked():
    """Trap: prompt and answer tokenised together may share a token at the seam, which then is neither's."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    merged = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, [("a", "b")]))
    merged.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    together = merged.encode("ab").ids
    ((ids, counts),) = tokenised(merged, [[Piece("a"), Piece("b", True)]], 3)
    ((prompt, _),) = tokenised(merged, [[Piece("a")]], 3)
    assert together == [2] and ids.tolist() == [0, 1, 3] and counts.tolist() == [False, True, True] and prompt.tolist() == [0]


def test_a_conversation_that_ends_with_a_user_is_followed_by_the_heading_of_an_answer():
    pieces = conversation([("user", "a?"), ("assistant", "A."), ("user", "b?")])
    assert [piece.counts for piece in pieces] == [False, True, False]
    assert pieces[-1].text == "### Instruction:\nb?\n\n### Response:\n"


FAULTS = {
    "no form": ({"question": "a", "answer": "b"}, "a.jsonl:1: an object with 'question', 'answer'; expected {instruction, output}"),
    "two forms": ({"prompt": "a", "completion": "b", "instruction": "c"}, "a.jsonl:1: an object with 'prompt', "),
    "no answer": ({"instruction": "a"}, "a.jsonl:1: there is no 'output'"),
    "null": ({"prompt": "a", "completion": None}, "a.jsonl:1: completion: a text is expected, found null"),
    "number": ({"instruction": 3, "output": "b"}, "a.jsonl:1: instruction: a text is expected, found 3"),
    "role": ({"messages": [{"role": "bot", "content": "a"}]}, "a.jsonl:1: message 0: expected a role of system, user, assistant"),
    "content": ({"messages": [{"role": "user"}]}, "a.jsonl:1: message 0: there is no 'content'"),
    "none said": ({"messages": []}, "a.jsonl:1: messages: a list of messages is expected, found []"),
    "no assistant": ({"messages": SAID[:2]}, "a.jsonl:1: no message of the assistant, so there is no answer to learn"),
    "not json": ("{", "a.jsonl:1: not valid JSON"),
    "surrogate": ('{"prompt": "\\ud800", "completion": "b"}', "a.jsonl:1: prompt: half of a character"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_row_is_named_with_its_line(tmp_path, fault):
    row, said = FAULTS[fault]
    with pytest.raises(UserError) as error:
        read_instructions(written(tmp_path / "a.jsonl", row), Layout())
    assert said in str(error.value)


def test_a_file_has_one_form_and_says_what_it_leaves_out(tmp_path):
    good = {"instruction": "a", "output": " ", "id": 3}
    rows = read_instructions(written(tmp_path / "a.jsonl", good, "", good), Layout(label_part=":"))
    assert rows.lines == [1, 3] and rows.decided == [
        "rows of the form instruction",
        "2 rows with an empty answer",
        "id not used",
        "--label-part does not apply to instructions",
    ]
    with pytest.raises(UserError, match=r"a\.jsonl:2: a row of the form prompt, where line 1 is instruction"):
        read_instructions(written(tmp_path / "a.jsonl", good, {"prompt": "a", "completion": "b"}), Layout())
    with pytest.raises(UserError, match="the file is empty"):
        read_instructions(written(tmp_path / "b.jsonl", ""), Layout())
    with pytest.raises(UserError, match="--format csv: instructions are read from JSON lines alone"):
        read_instructions(written(tmp_path / "a.jsonl", good), Layout(format="csv"))
