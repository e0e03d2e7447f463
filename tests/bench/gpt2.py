"""Training and generation at GPT-2's size beside transformers: `python tests/bench/gpt2.py`, 3 minutes of a core.

124 million random weights, the same on both sides, float32, one thread, no dropout. Training: steps of AdamW on 2 rows of 128;
the loss is that of every next token. Generation: greedy with the cache, 24 tokens after a prompt of 32, of one row and of 4. Every
run is a process of its own, the sides take turns. Seconds are those of the processor, so that what else runs on the machine counts
little: of the median step, of the whole text, the best of the repetitions. Memory is the process's highest, imports included.
Needs the test extra.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

REPETITIONS, STEPS, ROWS, LENGTH, LR = 2, 4, 2, 128, 1e-4
PROMPT, NEW, BATCHES = 32, 24, (1, 4)
NONE = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(50000, (rows, length), generator=torch.Generator().manual_seed(0))


def minift_side(directory: Path):
    """(model, a step of training on tokens (B, S + 1) -> loss, the tokens that follow prompts (B, S))"""
    from minift.data.batching import Batch
    from minift.generation import Sampling, Writer, last
    from minift.models.gpt2 import Gpt2, Gpt2Config
    from minift.optim.adamw import AdamW
    from minift.optim.groups import make_groups
    from minift.tasks.causal_lm import TiedHead
    from minift.tasks.task import Model

    with torch.device("meta"):
        body = Gpt2(Gpt2Config(**NONE))
    body.load_state_dict(load_file(directory / "minift.safetensors"), assign=True)
    model = Model(body, TiedHead(body)).requires_grad_(True)
    optimizer = AdamW(make_groups(model, LR, 0.0))

    def step(ids):
        rows = len(ids)
        batch = Batch((ids[:, :-1], None, None), (ids[:, 1:].contiguous(),), np.arange(rows), torch.full((rows,), float(LENGTH)))
        loss = model(batch)[1][0].sum() / batch.counts.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    class Ids:
        """Decodes to nothing, as transformers' generate gives ids."""

        def decode(self, ids, skip_special_tokens=True):
            return ""

    writer = Writer(body, Ids(), 50256)

    def write(ids):
        prompts = [(i, row.numpy()) for i, row in enumerate(ids)]
        return [one.tokens for one in last(writer.write(prompts, Sampling(new_tokens=NEW)))]

    return model, step, write


def transformers_side(directory: Path):
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.GPT2LMHeadModel.from_pretrained(directory / "hf", dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)

    def step(ids):
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def write(ids):
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=50256)
        return made[:, ids.shape[1] :].tolist()

    return model, step, write


SIDES = {"minift": minift_side, "transformers": transformers_side}


def measure(side: str, what: str, directory: Path) -> None:
    torch.set_num_threads(1)
    model, step, write = SIDES[side](directory)
    if what == "training":
        model.train()
        seconds, made = [], []
        for _ in range(STEPS):
            begin = time.process_time()
            made.append(step(tokens(ROWS, LENGTH + 1)))
            seconds.append(time.process_time() - begin)
        speed = {"training": ROWS * LENGTH / statistics.median(seconds[1:])}
    else:
        model.eval()
        speed, made = {}, []
        for rows in BATCHES:
            begin = time.process_time()
            made += write(tokens(rows, PROMPT))
            speed[f"generation, {rows} rows"] = rows * NEW / (time.process_time() - begin)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"speed": speed, "memory": memory, "made": made}))


def prepare(directory: Path) -> None:
    """The same weights for both, each as it reads them."""
    from minift.formats.huggingface import to_huggingface
    from minift.models.gpt2 import Gpt2, Gpt2Config

    torch.manual_seed(0)
    body = Gpt2(Gpt2Config(**NONE))
    save_file(body.state_dict(), directory / "minift.safetensors")
    (directory / "hf").mkdir()
    save_file(to_huggingface(body.state_dict(), body, "transformer."), directory / "hf" / "model.safetensors", {"format": "pt"})
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **vars(body.config)}
    (directory / "hf" / "config.json").write_text(json.dumps(config))


def main() -> None:
    if len(sys.argv) > 1:
        return measure(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    with tempfile.TemporaryDirectory() as directory:
        prepare(Path(directory))
        for what in ("training", "generation"):
            found = {side: [] for side in SIDES}
            for _ in range(REPETITIONS):
                for side in SIDES:
                    command = [sys.executable, __file__, side, what, directory]
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    found[side].append(json.loads(done.stdout.splitlines()[-1]))
            ours, theirs = (found[side] for side in SIDES)
            for name in ours[0]["speed"]:
                a, b = (max(run["speed"][name] for run in runs) for runs in (ours, theirs))
                print(f"{name}: minift {a:.1f} tokens/s, transformers {b:.1f}, {a / b:.2f} of it", flush=True)
            a, b = (min(run["memory"] for run in runs) for runs in (ours, theirs))
            print(f"{what}: memory {a:,.0f} MB, {b:,.0f} MB, {a / b:.2f} of it")
            if what == "training":
                print("losses: " + ", ".join(f"{x:.5f} {y:.5f}" for x, y in zip(ours[0]["made"], theirs[0]["made"], strict=True)))
            else:
                print(f"the same tokens: {ours[0]['made'] == theirs[0]['made']}")


if __name__ == "__main__":
    main()
