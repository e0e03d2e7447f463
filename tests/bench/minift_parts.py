"""What of minift no command does alone, for `python -m tests.bench`.

`python tests/bench/minift_parts.py first-step FLAGS`: train.py with these flags, ended after its first step.
`python tests/bench/minift_parts.py tokenise FILE`: SST-2's rows read and tokenised as for training; prints their number as JSON.
"""

import json
import os
import sys


def first_step(flags: list[str]) -> None:
    import train
    from minift import training

    step = training.step

    def last(*arguments):
        step(*arguments)
        os._exit(0)

    training.step = last
    train.main(flags)


def tokenise(file: str) -> None:
    from minift.data.layout import TextLayout
    from minift.pretrained import find, read
    from minift.tasks.text_classification import TextClassification

    checkpoint = read(find("minilm-l6"))
    rows = TextClassification.read(file, TextLayout())
    data = TextClassification(["0", "1"], "cls", 128, pairs=False).prepare(rows, checkpoint)
    print(json.dumps({"rows": len(data)}))


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    {"first-step": first_step, "tokenise": lambda rest: tokenise(*rest)}[what](rest)
