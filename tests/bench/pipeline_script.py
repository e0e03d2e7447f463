"""Transformers' pipeline, as its users write it: `python tests/bench/pipeline_script.py --model DIR --data FILE --out OUT`.

The peer of `python -m tests.bench`. FILE: GLUE's SST-2, whose labels are only counted. Batches of 64. Prints the accuracy as JSON.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args()

    texts, labels = zip(*(line.split("\t") for line in arguments.data.read_text(encoding="utf-8").splitlines()[1:]), strict=True)
    pipe = transformers.pipeline(
        "text-classification", model=arguments.model, device="cpu", dtype=getattr(torch, arguments.dtype), batch_size=64
    )
    found = pipe(list(texts))
    arguments.out.write_text("".join(json.dumps(one) + "\n" for one in found), encoding="utf-8")
    print(json.dumps({"accuracy": sum(one["label"] == label for one, label in zip(found, labels, strict=True)) / len(labels)}))


if __name__ == "__main__":
    main()
