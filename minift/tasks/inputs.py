"""What tasks share whose head reads what the body pools: how texts, pairs of texts and images become numbers.

From a row of a file to a batch:

    cells                   `read_texts`, data/texts.py      a text, perhaps a second one, and a label, as `Texts`
    token ids and targets   `OfTexts.prepare`, here          `encode` of data/tokenising.py; the task's `targets`; as `Encoded`
    which rows together     `shuffled`, data/batching.py     numbers of rows, similar lengths side by side
    tensors                 `Encoded.batches`, tokenising.py padded to the longest row: ids, mask, token types, targets

Of images `OfImages.prepare` and data/loading.py take these places. A task of texts is a subclass of `OfTexts`, one of images of
`OfImages`; what is learned of a row its `targets` say.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from minift.data.augmenting import augmented
from minift.data.decoding import processes
from minift.data.examples import Blocks, Examples
from minift.data.images import Images
from minift.data.layout import ImageLayout, TextLayout
from minift.data.loading import Pictures, Preprocessing
from minift.data.stored import is_large
from minift.data.texts import Texts, texts_in_blocks
from minift.data.token_files import tokenised
from minift.data.tokenising import Encoded, encode
from minift.errors import UserError
from minift.fields import ranged
from minift.tasks.task import Task, text_defaults


class Pooled(Task):
    """One unit a row, with targets of a fixed shape."""

    def targets(self, examples: Examples) -> np.ndarray:
        """(N, ...) what is learned of each row."""
        raise NotImplementedError

    def counted(self, targets: tuple[np.ndarray, ...], options) -> dict:
        """How the rows are counted: fields of `Labelled`. options: the run's, where the rows are to train on; else None."""
        return {}


@dataclass(frozen=True)
class OfTexts(Pooled):
    """A text, or a pair of texts, a row."""

    pool: str  # what the body pools to
    max_length: int = ranged(least=3)  # tokens of a row
    pairs: bool  # whether a row is a pair of texts

    MODEL: ClassVar = "minilm-l6"
    OPTIMIZER: ClassVar = "adamw"
    WEIGHT_DECAY: ClassVar = 0.01
    LAYOUT: ClassVar = TextLayout

    @classmethod
    def defaults(cls, method: str, checkpoint) -> dict[str, tuple]:
        recorded = checkpoint.pool if method == "probe" else None
        pool = (recorded or checkpoint.usual_pool, "from the checkpoint" if recorded else "default")
        return text_defaults(checkpoint) | {"pool": pool}

    @classmethod
    def in_blocks(cls, source: str, layout: TextLayout, size: int) -> Blocks:
        return texts_in_blocks(source, layout, size)

    def prepare(self, examples: Texts, checkpoint, options=None, workers: int = 0) -> Encoded:
        positions = checkpoint.max_length
        if self.max_length > positions:
            raise UserError(f"--max-length {self.max_length}: the model has {positions} positions")
        if self.pairs:
            empty = checkpoint.tokenizer.encode("", "")
            if not len(empty):
                raise UserError(f"{examples.path}: pairs of texts, and the tokenizer of this model puts nothing between them; join "
                                "the two, as --text-column sentence1+sentence2")  # fmt: skip
            if max(empty.type_ids) >= checkpoint.config["type_vocab_size"]:
                raise UserError(f"{examples.path}: pairs of texts, and the model knows one kind of text (type_vocab_size 1)")
            if self.max_length < len(empty) + 2:
                least = f"expected {len(empty) + 2} or more for pairs, of which {len(empty)} are special"
                raise UserError(f"--max-length {self.max_length}: {least}")
        if (examples.pairs is not None) != self.pairs:
            trained = (
                "pairs of texts, and here is one text a row (--pair on the command line)"
                if self.pairs
                else "single texts, and here are pairs"
            )
            raise UserError(f"{examples.path}: the run was trained on {trained}")
        filler = checkpoint.config["pad_token_id"]
        rows = (checkpoint.tokenizer, examples.texts, examples.pairs, self.max_length, filler)
        tokens, types, uncut = tokenised(*rows, examples.decided) if is_large(examples.texts) else encode(*rows)
        lengths = np.diff(tokens.starts).astype(np.int32)
        if np.array_equal(uncut, lengths):
            uncut = lengths  # once in memory
        targets = () if examples.labels is None else (self.targets(examples),)
        encoded = Encoded(
            tokens,
            types,
            lengths,
            targets,
            filler,
            self.max_length,
            uncut,
            **self.counted(targets, options),
        )
        if options is None or (options.augment is None and options.paraphrases is None):
            return encoded
        return augmented(encoded, examples, checkpoint.tokenizer, options)


class OfImages(Pooled):
    """An image a row."""

    MODEL: ClassVar = "efficientnet-lite0"
    OPTIMIZER: ClassVar = "sgd"
    WEIGHT_DECAY: ClassVar = 1e-4
    LAYOUT: ClassVar = ImageLayout

    @classmethod
    def defaults(cls, method: str, checkpoint) -> dict[str, tuple]:
        if checkpoint.preprocessing is None:
            raise UserError(f"{checkpoint.source} is a model of texts; expected one of images, as --model efficientnet-lite0")
        return {
            "augment": ("none" if method == "probe" else "standard", f"default of {method}"),
            "workers": (processes(None), "detected"),
        }

    def prepare(self, examples: Images, checkpoint, options=None, workers: int = 0) -> Pictures:
        targets = () if examples.labels is None else (self.targets(examples),)
        counted = self.counted(targets, options)
        pictures = Pictures(examples.files, targets, Preprocessing.of(checkpoint.preprocessing), workers=workers, **counted)
        if options is None:
            return pictures
        if options.views is not None and options.augment == "none":
            raise UserError("--views with --augment none: there is one view of every picture")
        return replace(pictures, **{name: getattr(options, name) for name in ("augment", "views", "seed")})
