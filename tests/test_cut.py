"""What was cut or went into windows is counted: printed with the data, and in result.json, for every task of texts."""

import json

import pytest
from contract.tasks import over_bytes
from tiny import converted_directory

import train

LONG, SHORT = "the film was very good and the food was bad", "good film"  # 10 and 2 words, each a token: 12 and 4 with [CLS], [SEP]
TEXT = [LONG, SHORT, LONG, SHORT, SHORT, SHORT, LONG, SHORT]  # 3 of 8 are longer than 8 tokens


def table(header: str, cells: list[str]) -> str:
    return f"{header}\n" + "".join(f"{text},{cell}\n" for text, cell in zip(TEXT, cells, strict=True))


def sentences() -> str:
    return "\n\n".join("\n".join(f"{word}\tO" for word in text.split()[:-1]) + "\ngood\tB-X" for text in TEXT) + "\n"


def questions() -> str:
    return "".join(json.dumps({"question": "is ?", "context": text, "answer": "film"}) + "\n" for text in TEXT)


def prompts() -> str:
    return "".join(json.dumps({"prompt": text[: 50 if text == LONG else 3], "completion": "good"}) + "\n" for text in TEXT)


CASES = {  # task: name of the file, its content, flags, what stands of the training rows in result.json
    "text-classification": ("a.csv", table("text,label", ["yes", "no"] * 4), {}, {"rows": 8, "longest": 14, "cut by 8": 3}),
    "text-regression": ("a.csv", table("text,score", list("12345678")), {}, {"rows": 8, "longest": 14, "cut by 8": 3}),
    "multi-label-classification": ("a.csv", table("text,labels", ["a|b", "a"] * 4), {}, {"rows": 8, "cut by 8": 3}),
    "token-classification": ("a.conll", sentences(), {"overlap": 2}, {"rows": 8, "words": 40, "in windows of 8": 3}),
    "masked-lm": ("a.txt", "\n".join(TEXT) + "\n", {"documents": "lines"}, {"cut by 8": 3, "blocks": 11}),
    "causal-lm": ("a.txt", "\n".join(TEXT) + "\n", {"documents": "lines", "blocks": "within"}, {"cut by 8": 8, "blocks": 28}),
    "instruction-tuning": ("a.jsonl", prompts(), {}, {"rows": 8, "cut by 8": 3, "no answer left": 3, "tokens that count": 25}),
    "question-answering": ("a.jsonl", questions(), {"overlap": 1}, {"rows": 8, "in windows of 8": 3}),
}


@pytest.mark.parametrize("task", CASES)
def test_what_is_cut_is_printed_and_stored(tmp_path, capsys, task):
    name, content, flags, expected = CASES[task]
    (tmp_path / name).write_text(content)
    flags = {
        "train": tmp_path / name,
        "model": (over_bytes if task in ("causal-lm", "instruction-tuning") else converted_directory)(tmp_path / "base"),
        "max-length": 8,
        "out": tmp_path / "run",
    } | flags
    given = [str(part) for key, value in flags.items() for part in (f"--{key}", value)]
    train.main(["--task", task, *given, "--valid", str(tmp_path / name), "--epochs", "0", "--precision", "float32"])
    stored = json.loads((tmp_path / "run" / "result.json").read_text())["data"]
    assert stored["train"] == stored["valid"] and expected.items() <= stored["train"].items(), stored
    header, row = (line for line in capsys.readouterr().out.splitlines() if line.startswith(("split ", "train ")))
    for figure, value in stored["train"].items():
        assert figure in header and f" {value:,}" in row
