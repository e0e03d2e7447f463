"""Transformers' Trainer, as its users write it: `python tests/bench/trainer_script.py --model DIR --train FILE --dev FILE`.

The peer of `python -m tests.bench` and of table_sst2.py. FILE: GLUE's SST-2. Dynamic padding, batches of 32, linear decay after a
warm-up of 10 %, the dev set scored after every epoch, nothing saved. --best adds what makes the Trainer faster: rows grouped by
length and the fused AdamW, which newer versions take anyway; --bf16 is apart from it, as it is not faster everywhere. Prints the
accuracy of the last epoch and the seconds of training and scoring as JSON. For transformers 4.57 or later, 5 included.
"""

import argparse
import json
import math
import os
import tempfile
import time
from dataclasses import fields
from pathlib import Path

import torch
import transformers

BATCH, LENGTH, WEIGHT_DECAY, WARMUP = 32, 128, 0.01, 0.1


def read(path: Path, tokenizer) -> list[dict]:
    """The tokenised rows; a list is a torch Dataset."""
    pairs = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    encoded = tokenizer([text for text, _ in pairs], truncation=True, max_length=LENGTH)
    return [{**{key: encoded[key][i] for key in encoded}, "label": int(label)} for i, (_, label) in enumerate(pairs)]


def choose_parameters(model, method: str):
    """The model, with what the method leaves alone frozen. probe: the head alone trains; partial: the top 2 layers and the head."""
    if method == "lora":
        import peft

        config = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
        return peft.get_peft_model(model, config)
    if method in ("probe", "partial"):
        model.base_model.requires_grad_(False)
    if method == "partial":
        model.base_model.encoder.layer[-2:].requires_grad_(True)
        model.base_model.pooler.requires_grad_(True)
    return model


def settings(arguments: argparse.Namespace, rows: int, directory: str) -> transformers.TrainingArguments:
    flags = {"bf16": arguments.bf16}
    if arguments.best:
        grouped = any(f.name == "group_by_length" for f in fields(transformers.TrainingArguments))  # until version 5
        flags |= {"group_by_length": True} if grouped else {"train_sampling_strategy": "group_by_length"}
        flags |= {"optim": "adamw_torch_fused"}
    return transformers.TrainingArguments(
        output_dir=directory,
        use_cpu=True,
        learning_rate=arguments.lr,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        num_train_epochs=arguments.epochs,
        weight_decay=WEIGHT_DECAY,
        warmup_steps=math.ceil(WARMUP * arguments.epochs * math.ceil(rows / BATCH)),
        eval_strategy="epoch",
        save_strategy="no",
        label_names=["labels"],  # which the Trainer cannot find by itself in a model of peft's
        report_to=[],
        seed=arguments.seed,
        disable_tqdm=True,
        **flags,
    )


class EndAfterFirstStep(transformers.TrainerCallback):
    def on_step_end(self, *_, **__):
        os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "train", "dev"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--method", choices=["full", "lora", "probe", "partial"], default="full")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--first-step", action="store_true", help="end after the first step")
    arguments = parser.parse_args()

    transformers.set_seed(arguments.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(arguments.model, num_labels=2, dtype=torch.float32)
    train, dev = read(arguments.train, tokenizer), read(arguments.dev, tokenizer)
    with tempfile.TemporaryDirectory() as directory:
        trainer = transformers.Trainer(
            choose_parameters(model, arguments.method),
            settings(arguments, len(train), directory),
            train_dataset=train,
            eval_dataset=dev,
            processing_class=tokenizer,
            compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
            callbacks=[EndAfterFirstStep()] if arguments.first_step else None,
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    accuracy = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    print(json.dumps({"accuracy": accuracy[-1], "train_seconds": seconds}))


if __name__ == "__main__":
    main()
