"""The flags of the tasks. They stand apart from the tasks so that --help needs no torch."""

from dataclasses import dataclass

from minift.data.layout import DocumentLayout, ImageLayout, Layout, TextLayout
from minift.flags import flag


@dataclass(frozen=True)
class LabelFlags:
    label_names: str | None = flag(
        None, "file of the names of labels that are numbers from 0, a name a line; or .json: a list, or {label: name}"
    )


@dataclass(frozen=True)
class ClassificationFlags(LabelFlags):
    label_smoothing: float = flag(0.0, "share of every label that is spread evenly over all classes in training", least=0, below=1)
    class_weights: str = flag(
        "none",
        "balanced: in training a class counts by all rows / (classes x its rows), so that rare ones count as much as frequent ones",
        choices=("none", "balanced"),
    )
    sampler: str = flag(
        "none", "balanced: an epoch of training draws from every class equally often, instead of every row once",
        choices=("none", "balanced"),
    )  # fmt: skip
    solver: str = flag(
        "gradient",
        "gradient: steps of the optimizer; lbfgs: a probe solved exactly, its L2 penalty chosen by validation",
        choices=("gradient", "lbfgs"),
    )
    l2: float | None = flag(None, "L2 penalty of --solver lbfgs; unset: the best of at most 45 on the validation rows", above=0)


@dataclass(frozen=True)
class MultiLabelFlags(LabelFlags):
    pos_weight: str = flag(
        "none",
        "balanced: in training having a label counts by the rows without it / the rows with it; or one number for all labels",
    )
    thresholds: str = flag(
        "one",
        "of the probability from which on a row has a label, chosen on the validation rows: one (for all labels, by the micro F1), "
        "each (one a label, by its F1); or fixed: 0.5",
        choices=("one", "each", "fixed"),
    )


@dataclass(frozen=True)
class DropoutFlags:
    """Of what is trained on a model of texts."""

    dropout: float | None = flag(None, "dropout probability of hidden states; unset: the checkpoint's", least=0, below=1)
    attention_dropout: float | None = flag(None, "dropout probability of attention; unset: the checkpoint's", least=0, below=1)


@dataclass(frozen=True)
class TextFlags(DropoutFlags, TextLayout):
    pool: str | None = flag(
        None,
        "what the head reads: first token, mean, last token; unset: cls, of a GPT-2 last, for probe what the checkpoint recommends",
        choices=("cls", "mean", "last"),
    )
    max_length: int | None = flag(
        None, "tokens of a row, special ones counted; longer rows are cut; unset: 128, or what the model can take", least=3
    )
    augment: str | None = flag(
        None,
        "changes to the training rows, new in each epoch: eda:deletion=0.1,swap=0.1 (words deleted, exchanged); cutoff:rate=0.1 "
        "(tokens hidden)",
    )
    paraphrases: str | None = flag(
        None, "table with the columns text and paraphrase: a training row is then its text or one of its paraphrases, by chance"
    )


@dataclass(frozen=True)
class TextClassificationFlags(ClassificationFlags, TextFlags):
    pass


@dataclass(frozen=True)
class TextRegressionFlags(TextFlags):
    scale_targets: bool = flag(
        True, "train on targets less their mean, by their deviation; predictions are in true units either way"
    )


@dataclass(frozen=True)
class MultiLabelClassificationFlags(MultiLabelFlags, TextFlags):
    pass


@dataclass(frozen=True)
class ImageFlags(ImageLayout):
    method: str = flag("probe", "what trains: probe, full, lora:rank=4, ..., joined by +; help lists them")
    augment: str | None = flag(
        None,
        "none, standard (crop, flip), strong, randaugment, trivialaugment; unset: standard, for probe none",
        choices=("none", "standard", "strong", "randaugment", "trivialaugment"),
    )
    image_size: int | None = flag(
        None, "side of the squares that the model sees, in pixels; unset: the checkpoint's", least=1, most=10_000
    )
    bn_momentum: str | None = flag(
        None,
        "share of the newest batch in the statistics of BatchNorms that train: a number, or kornblith: 10 / steps of an epoch, at "
        "most 0.1; unset: the checkpoint's",
    )
    views: int | None = flag(None, "augmented views of every training image, in turn; unset: new ones in each epoch", least=1)


@dataclass(frozen=True)
class ImageClassificationFlags(ClassificationFlags, ImageFlags):
    mixup: float = flag(0.0, "alpha of Beta(alpha, alpha), by which pairs of training images are blended; 0: never", least=0)
    cutmix: float = flag(0.0, "alpha for rectangles of training images put into others; 0: never", least=0)


@dataclass(frozen=True)
class TokenClassificationFlags(DropoutFlags, Layout):
    format: str = flag("auto", "auto (by the extension), conll (a word and its tag a line), jsonl, lines (sentences without tags)")
    text_column: str | None = flag(None, "of the words: number from 1, or key of a jsonl file; unset: the first, or a usual key")
    label_column: str | None = flag(None, "of the tags: number from 1, or key of a jsonl file; unset: the last, or a usual key")
    max_length: int | None = flag(
        None, "tokens of a window, special ones counted; longer rows have several; unset: 128, or what the model can take", least=3
    )
    overlap: int | None = flag(None, "tokens that neighbouring windows of a row share; unset: a quarter of --max-length", least=0)


@dataclass(frozen=True)
class MultiLabelImageClassificationFlags(MultiLabelFlags, ImageFlags):
    pass


@dataclass(frozen=True)
class MaskedLMFlags(DropoutFlags, DocumentLayout):
    max_length: int | None = flag(None, "tokens of a block, special ones counted; unset: 128, or what the model can take", least=5)
    blocks: str = flag(
        "within",
        "within: each document cut into blocks of its own; across: all documents are one stream, cut into full blocks",
        choices=("within", "across"),
    )
    masking: str = flag(
        "exact",
        "exact: that share of each block's tokens; whole-words: of its words; coin: each token by chance",
        choices=("exact", "whole-words", "coin"),
    )
    mask_share: float = flag(0.15, "share of the tokens to be predicted: 80 % become [MASK], 10 % another token", above=0, below=1)


@dataclass(frozen=True)
class QuestionAnsweringFlags(DropoutFlags, TextLayout):
    format: str = flag("auto", "auto (by the extension), squad (SQuAD's JSON), jsonl, csv, tsv")
    text_column: str | None = flag(None, "of the questions in a flat table: name, or number from 1; unset: by the usual names")
    pair_column: str | None = flag(None, "of the contexts: name, or number from 1; unset: by the usual names")
    label_column: str | None = flag(None, "of the answers: name, or number from 1; unset: by the usual names")
    max_length: int | None = flag(
        None,
        "tokens of a window: special ones, the whole question, a part of the context; unset: 384, or what the model can take",
        least=5,
    )
    overlap: int | None = flag(
        None, "tokens of the context that neighbouring windows share (not the step); unset: a third of --max-length", least=0
    )
    max_answer_length: int = flag(30, "tokens of the longest answer that is predicted", least=1)


@dataclass(frozen=True)
class CausalLMFlags(DropoutFlags, DocumentLayout):
    max_length: int | None = flag(None, "tokens of a block; unset: 256, or what the model can take", least=2)
    blocks: str = flag(
        "across",
        "across: all documents are one stream, an end of text between them, cut into blocks; within: each document by itself",
        choices=("within", "across"),
    )


@dataclass(frozen=True)
class InstructionTuningFlags(DropoutFlags, Layout):
    max_length: int | None = flag(
        None,
        "tokens of a row, prompt and answer together; longer rows are cut at their end; unset: 512, or what the model can take",
        least=2,
    )
    packing: bool = flag(
        False, "rows of a batch share rows of --max-length, each seeing itself alone: the same gradient, less padding"
    )
