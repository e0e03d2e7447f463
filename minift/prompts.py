"""Few-shot prompts, scored: what `python -m minift.prompting` does.

A pretrained model labels texts without a step of training: it reads some labelled rows and the text, and the label whose word it
finds most likely is taken (Brown et al. 2020, arXiv:2005.14165). No weight moves.

    s(y | x) = sum over the tokens of y's word of log p(token | what stands before it),   p(y | x) = softmax over the labels of s
    calibrated (Zhao et al. 2021, arXiv:2102.09690, section 5):  q(y | x) = p(y | x) / p(y | nothing), scaled to sum 1

p(y | nothing) is the mean of p over texts without content, N/A, [MASK] and an empty one, in the same prompt: a model prefers some
words, and the labels of the last rows it has read, whatever the text. Differs from the paper in adding up the tokens of a word,
where the paper reads the first.
A decoder reads the rows and the text as far as the label; a BERT or RoBERTa reads a cloze, with a mask in the label's place, from
its head of masked-lm, so there every word must be a single token (as in PET, Schick & Schuetze 2021, arXiv:2001.07676).

Axes: N rows, C labels, B sequences of a batch, S the longest, T predicted tokens, D width, V vocabulary.
Proved by tests/reference/test_prompting.py on random twins: no pretrained decoder is in this repository, so how good prompts are is
for you to see on one of your own.
"""

from dataclasses import dataclass

import numpy as np

from minift.data.examples import check_characters
from minift.errors import UserError

TEMPLATES = {True: "Text: {text}\nLabel: {label}\n\n", False: "{text} It was {label}. "}  # of decoders, of clozes
NOTHING = ("N/A", "[MASK]", "")  # texts without content, as in the paper
LEAST = 8  # characters of a text that a prompt must have room for


@dataclass
class Prompt:
    """How rows and texts are written. shown: rows that the model reads, (text, label)."""

    template: str
    words: dict[str, str]  # label -> word
    shown: list[tuple[str, str]]

    def before(self) -> str:
        """The rows that are shown, with their labels."""
        return "".join(self.template.format(text=text, label=self.words[label]) for text, label in self.shown)

    def asked(self, text: str) -> tuple[str, str]:
        """(what stands before the label of a text, what behind it); a blank before the label belongs to its word."""
        first, _, last = self.template.partition("{label}")
        return self.before() + first.format(text=text), last.format(text=text)


def check(template: str, scorer: "Scorer", words: dict[str, str]) -> None:
    for flag, text in (("--template", template), *(("--words", word) for word in words.values())):
        check_characters(text, flag)
    if template.count("{text}") != 1 or template.count("{label}") != 1 or template.count("{") + template.count("}") != 4:
        raise UserError(f"--template {template!r}: expected one {{text}}, one {{label}}, and no other braces")
    if template.index("{text}") > template.index("{label}") and scorer.causal:
        raise UserError(f"--template {template!r}: a decoder reads the text before the label, so {{text}} stands first")
    if scorer.causal:
        return
    for label, word in words.items():
        if len(scorer.word_ids(word)) != 1:
            raise UserError(f"the label word {word!r} has {len(scorer.word_ids(word))} tokens, and a cloze has one mask; give "
                            f"another one, as --words {label}=WORD")  # fmt: skip


def choose(texts: list[str], labels: list[str], shots: int, seed: int) -> list[tuple[str, str]]:
    """Rows to show, of each class in turn, in random order."""
    random = np.random.default_rng(seed)
    by_label = {
        label: random.permutation([i for i, one in enumerate(labels) if one == label]).tolist() for label in sorted({*labels})
    }
    if shots > len(texts):
        raise UserError(f"--shots {shots}: there are {len(texts)} training rows")
    taken: list[int] = []
    while len(taken) < shots:
        taken += [rows.pop() for rows in by_label.values() if rows][: shots - len(taken)]
    return [(texts[i], labels[i]) for i in random.permutation(taken).tolist()] if taken else []


def calibrated(p: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """(N, C), (C) -> (N, C) what is more likely than it is without a text."""
    q = p / prior
    return q / q.sum(1, keepdims=True)


def probabilities(scorer: "Scorer", prompt: Prompt, texts: list[str], batch_size: int) -> tuple[np.ndarray, int]:
    """(p (N, C), how many texts were cut as the window has no room for them)"""
    words, asked, cut = list(prompt.words.values()), [], 0
    for text in texts:
        whole = text
        while (over := scorer.length(*prompt.asked(text), words) - scorer.window) > 0:
            if len(text) < LEAST or len(text) <= over // 8:
                raise UserError(f"{len(prompt.shown)} shots take the {scorer.window} tokens of the model's window; give fewer")
            text = text[: len(text) - max(1, min(over, len(text) // 4))]
        asked.append(prompt.asked(text))
        cut += text != whole
    scores = np.concatenate([scorer.scores(asked[i : i + batch_size], words) for i in range(0, len(asked), batch_size)])
    p = np.exp(scores - scores.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True), cut


class Scorer:
    """log p of label words in their place, (N, C)."""

    causal: bool

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.window = model.body.config.max_length

    @property
    def device(self):
        return next(self.model.parameters()).device

    def word_ids(self, word: str, blank: bool = True) -> list[int]:
        """blank: whether the word stands behind one, which byte-level BPE takes for a part of it."""
        return self.tokenizer.encode(" " * blank + word, add_special_tokens=False).ids

    def length(self, before: str, behind: str, words: list[str]) -> int:
        """Tokens of a prompt with its longest label."""
        raise NotImplementedError

    def scores(self, asked: list[tuple[str, str]], words: list[str]) -> np.ndarray:
        """asked: what stands before the label, and what behind it."""
        raise NotImplementedError


class Decoder(Scorer):
    causal = True

    def ids(self, before: str) -> list[int]:
        """Of the prompt without a blank at its end; of none at all the end of text, as something must stand before a word."""
        found = self.tokenizer.encode(before.removesuffix(" "), add_special_tokens=False).ids
        return found or [self.model.body.config.eos_token_id]

    def length(self, before: str, behind: str, words: list[str]) -> int:
        return len(self.ids(before)) + max(len(self.word_ids(word, before.endswith(" "))) for word in words) - 1

    def scores(self, asked: list[tuple[str, str]], words: list[str]) -> np.ndarray:
        import torch
        import torch.nn.functional as F

        from minift.data.tokenising import pad

        parts = [self.word_ids(word, asked[0][0].endswith(" ")) for word in words]
        starts = list(dict.fromkeys(tuple(part[:-1]) for part in parts))  # words of one token share a sequence
        prompts = [self.ids(before) for before, _ in asked]
        tokens, _, _ = pad([np.array([*prompt, *start]) for prompt in prompts for start in starts], 0)  # (B, S)
        with torch.inference_mode():
            hidden = self.model.body(tokens.to(self.device)).hidden.view(len(asked), len(starts), tokens.shape[1], -1)
            scores = np.empty((len(asked), len(words)))
            for row, prompt in enumerate(prompts):
                for c, part in enumerate(parts):
                    at = slice(len(prompt) - 1, len(prompt) - 1 + len(part))
                    logits = self.model.head.logits(hidden[row, starts.index(tuple(part[:-1])), at])  # (T, D) -> (T, V)
                    scores[row, c] = -F.cross_entropy(logits, torch.tensor(part, device=logits.device), reduction="sum").item()
        return scores


class Cloze(Scorer):
    causal = False

    def __init__(self, model, tokenizer):
        from minift.data.masking import vocabulary_of

        super().__init__(model, tokenizer)
        config = model.body.config
        self.vocabulary = vocabulary_of(tokenizer, config.pad_token_id)

    def encoded(self, before: str, behind: str) -> list[int]:
        return self.tokenizer.encode(before + self.tokenizer.id_to_token(self.vocabulary.mask) + behind).ids

    def length(self, before: str, behind: str, words: list[str]) -> int:
        return len(self.encoded(before, behind))

    def scores(self, asked: list[tuple[str, str]], words: list[str]) -> np.ndarray:
        import torch

        from minift.data.batching import Batch
        from minift.data.tokenising import pad

        rows = [np.array(self.encoded(*one)) for one in asked]
        inputs = pad(rows, self.vocabulary.pad)
        masks = [self.tokenizer.encode(before, add_special_tokens=False).ids.count(self.vocabulary.mask) for before, _ in asked]
        positions = [[np.flatnonzero(ids == self.vocabulary.mask)[n]] for ids, n in zip(rows, masks, strict=True)]  # the label's
        positions = torch.tensor(np.array(positions))
        batch = Batch(inputs, (positions, positions), np.arange(len(rows)), torch.ones(len(rows))).to(self.device)
        with torch.inference_mode():
            _, logits = self.model(batch)  # (B, 1, V)
        return logits[:, 0].double().log_softmax(-1)[:, [self.word_ids(word)[0] for word in words]].cpu().numpy()


def open_scorer(name: str, device: str | None = None) -> Scorer:
    """Raises UserError for a model that has no head for words."""
    from minift.finetuned import choose_device
    from minift.pretrained import find, read
    from minift.tasks.causal_lm import TiedHead
    from minift.tasks.masked_lm import MaskedLMHead
    from minift.tasks.task import Model

    checkpoint = read(find(name))
    if checkpoint.tokenizer is None:
        raise UserError(f"--model {name} is a model of images; expected a decoder, a BERT or a RoBERTa")
    task = checkpoint.task["name"] if checkpoint.task else None
    weights = checkpoint.head if task == "masked-lm" else checkpoint.heads.get("masked-lm")
    if not checkpoint.causal and weights is None:
        raise UserError(f"--model {name} has no head of masked-lm, by which a word could be likely; expected a checkpoint with its "
                        "own, or a run of masked-lm")  # fmt: skip
    body = checkpoint.tuned_body() if checkpoint.task else checkpoint.body(None)
    model = Model(body, (TiedHead if checkpoint.causal else MaskedLMHead)(body))
    if not checkpoint.causal:
        model.head.load_state_dict({leaf: tensor.float() for leaf, tensor in weights.items()})
    model = model.to(choose_device(device)).eval().requires_grad_(False)
    return (Decoder if checkpoint.causal else Cloze)(model, checkpoint.tokenizer)
