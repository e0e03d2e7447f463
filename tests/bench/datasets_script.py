"""Rows read and tokenised by datasets, as its users write it: `python tests/bench/datasets_script.py --model DIR --data FILE`.

The peer of `python -m tests.bench`. FILE: GLUE's SST-2, tab-separated, never quoted. Prints the number of rows as JSON.
"""

import argparse
import csv
import json

import datasets
import transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    arguments = parser.parse_args()

    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    rows = datasets.load_dataset("csv", data_files=arguments.data, delimiter="\t", quoting=csv.QUOTE_NONE, split="train")
    rows = rows.map(lambda batch: tokenizer(batch["sentence"], truncation=True, max_length=128), batched=True)
    print(json.dumps({"rows": len(rows)}))


if __name__ == "__main__":
    main()
