"""Few-shot prompting beside fine-tuning: `python -m minift.prompting --model M --train FILE --test FILE --shots 0,4,16`.

What a prompt is and how a label is scored stands in minift/prompts.py.
"""

import sys
import time
from collections import Counter

from minift.errors import UserError, command, one_line
from minift.flags import Parser, add_flags, check_ranges, check_whole
from minift.tables import counted, table


def main(argv: list[str]) -> None:
    from minift.data.layout import TextLayout

    parser = Parser(
        "python -m minift.prompting", "Score few-shot prompts on labelled texts: accuracy and macro F1, without training."
    )
    parser.add_argument("--model", required=True, help="converted decoder, BERT or RoBERTa, or a run of causal-lm or masked-lm")
    parser.add_argument("--train", required=True, help="file of labelled rows, of which some are shown to the model")
    parser.add_argument("--test", required=True, help="file of labelled rows to score")
    parser.add_argument("--test-rows", type=int, metavar="N", help="rows drawn from --test, of each class the same share")
    parser.add_argument("--shots", default="0,4,16", metavar="N,N", help="rows that are shown, for each a line (default: 0,4,16)")
    parser.add_argument("--template", metavar="TEXT", help="with {text} and {label}; \\n is a new line (default: by the model)")
    parser.add_argument("--words", metavar="LABEL=WORD,...", help="what stands for a label (default: the label itself)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the rows that are shown (default: 0)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="prompts of a batch (default: 16)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    add_flags(parser, TextLayout)
    arguments = parser.parse(argv)
    shots = shots_of(arguments.shots)
    check_whole(arguments, test_rows=(2, 2**62), batch_size=(1, 1_000_000), seed=(0, 2**62))
    if arguments.seed is not None and not any(shots):
        raise UserError(f"--seed {arguments.seed}: no rows are shown, so none are drawn")

    from dataclasses import fields

    import numpy as np

    from minift.data.splits import check_label_part, drawn
    from minift.data.texts import read_texts
    from minift.metrics.classification import classification_metrics, confusion_matrix
    from minift.prompts import NOTHING, TEMPLATES, Prompt, calibrated, check, choose, open_scorer, probabilities

    layout = TextLayout(**{f.name: getattr(arguments, f.name) for f in fields(TextLayout)})
    check_ranges(layout)
    train, test = (read_texts(path, layout) for path in (arguments.train, arguments.test))
    check_label_part(train, layout)
    if train.pairs or test.pairs:
        raise UserError("pairs of texts: join the two, as --text-column sentence1+sentence2")
    test = drawn(test, arguments.test_rows, 0, "--test-rows")
    labels = sorted({*train.labels})
    if strange := sorted({*test.labels} - {*labels}):
        raise UserError(f"{arguments.test}: the label {strange[0]!r} is none of {arguments.train}")
    scorer = open_scorer(arguments.model, arguments.device)
    template = TEMPLATES[scorer.causal] if arguments.template is None else arguments.template.replace("\\n", "\n")
    words = words_of(arguments.words, labels)
    check(template, scorer, words)
    gold = np.array([labels.index(label) for label in test.labels])
    rows = []
    for number in shots:
        start = time.perf_counter()
        prompt = Prompt(template, words, choose(train.texts, train.labels, number, arguments.seed or 0))
        p, cut = probabilities(scorer, prompt, test.texts, arguments.batch_size)
        nothing, _ = probabilities(scorer, prompt, list(NOTHING), arguments.batch_size)
        prior = nothing.mean(0)
        for name, values in (("plain", p), ("calibrated", calibrated(p, prior))):
            figures = classification_metrics(confusion_matrix(gold, values.argmax(1), len(labels)))
            rows.append([number, name, figures["accuracy"], figures["f1_macro"], cut, time.perf_counter() - start])
        preferred = ", ".join(f"{label} {value:.3f}" for label, value in zip(labels, prior, strict=True))
        print(f"{counted(number, 'shot')}: without a text the labels have {preferred}", file=sys.stderr)
    print(one_line(f"{arguments.test}: {len(test):,} rows; no weight of {arguments.model} has moved") + "\n")
    print(table(["shots", "probabilities", "accuracy", "f1_macro", "texts cut", "seconds"], rows))


def shots_of(given: str) -> list[int]:
    parts = given.split(",")
    if not all(part.isdecimal() and len(part) < 5 for part in parts):
        raise UserError(f"--shots {given}: expected numbers of rows, as 0,4,16")
    return [int(part) for part in parts]


def words_of(given: str | None, labels: list[str]) -> dict[str, str]:
    """label -> word. Raises UserError where two labels would have the same one."""
    words = {label: label for label in labels}
    named = [part.partition("=") for part in given.split(",")] if given is not None else []
    if twice := [label for label, times in Counter(label for label, *_ in named).items() if times > 1]:
        raise UserError(f"--words {given}: the label {twice[0]} stands there twice")
    for label, sign, word in named:
        part = label + sign + word
        if label not in words or not word:
            raise UserError(f"--words {part}: expected LABEL=WORD, of the labels {', '.join(labels[:20])}")
        words[label] = word
    if len({*words.values()}) < len(words):
        raise UserError(f"--words {given}: two labels have the same word, so they cannot be told apart")
    return words


if __name__ == "__main__":
    command(main, "prompting")
