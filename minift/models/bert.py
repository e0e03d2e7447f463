"""BERT, the encoder of Devlin et al. 2019 (arXiv:1810.04805, section 3), equal to transformers' `BertModel`.

    x      = dropout(LN(word[t] + token_type[u] + position[i]))             embeddings
    a      = softmax(Q K^T / sqrt(d)) V,  Q, K, V = x W_q, x W_k, x W_v     in each of H heads, dropout on the softmax
    x      = LN(x + dropout(a W_o))                                         attention, first half of a layer
    x      = LN(x + dropout(gelu(x W_1) W_2))                               feed-forward, second half
    pooled = tanh(x[first token] W_p), or the mean of x over the tokens     pooler `cls`, `mean`

Differs from Google's code in one thing: gelu is the exact one (erf), not the tanh approximation, as in transformers.
What methods rely on: every residual branch is a module whose output is what is added; every LayerNorm is called on the
finished sum (post-LN: `PRE_LN` is False); `attend` and `positions` are modules without parameters; no module is used twice in one
forward. A token that attends to nothing, as in a row that is all padding, gets 0 from `attend` (NaN before torch 2.5), where
transformers gives it the mean of V over the padding.

Axes: B batch, S sequence, D width, H heads, d = D/H width of a head, F feed-forward width, V vocabulary.
Proved by tests/reference/test_bert.py: every hidden state, the pooled output and every gradient, float64, 1e-10.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.models.body import Body, only

ACTIVATIONS = {"gelu": F.gelu, "gelu_new": partial(F.gelu, approximate="tanh"), "relu": F.relu}


@dataclass(frozen=True)
class BertConfig:
    """The fields of a `config.json` that shape the computation, under their Hugging Face names; defaults are BERT-base's."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    pad_token_id: int = 0
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # in a task's head; None: hidden_dropout_prob

    head_bias: ClassVar[bool] = True  # whether a head on the pooled output has a bias
    # flag -> the fields that it sets
    DROPOUT: ClassVar = {"dropout": ("hidden_dropout_prob",), "attention_dropout": ("attention_probs_dropout_prob",)}

    @property
    def width(self) -> int:
        """D"""
        return self.hidden_size

    @property
    def max_length(self) -> int:
        """The largest number of tokens: each needs a position of its own."""
        return self.max_position_embeddings

    @property
    def head_dropout(self) -> float:
        """Dropout probability in a head on the pooled output."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    @property
    def token_dropout(self) -> float:
        """Dropout probability in a head on the hidden states."""
        return self.head_dropout

    @property
    def lm_activation(self) -> Callable[[Tensor], Tensor]:
        """The activation in the head for masked language modelling."""
        return ACTIVATIONS[self.hidden_act]

    def __post_init__(self):
        # field -> types, smallest value, first value that is too large: above any model, but so low that no product overflows
        ranges = dict.fromkeys(("vocab_size", "max_position_embeddings", "type_vocab_size"), ((int,), 1, 2**31))
        ranges |= dict.fromkeys(("hidden_size", "num_attention_heads", "intermediate_size"), ((int,), 1, 2**20))
        ranges |= {"num_hidden_layers": ((int,), 1, 1000), "pad_token_id": ((int,), 0, self.vocab_size)}
        ranges |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), ((int, float), 0, 1))
        ranges |= {} if self.classifier_dropout is None else {"classifier_dropout": ((int, float), 0, 1)}
        ranges |= dict.fromkeys(("layer_norm_eps", "initializer_range"), ((int, float), 0, 100))
        check_fields(self, ranges, "hidden_act", "hidden_size", "num_attention_heads")


def check_fields(config, ranges: dict[str, tuple], activation: str, width: str, heads: str) -> None:
    """Raises ValueError for a field out of its range. ranges: field -> types, smallest value, first that is too large.

    activation, width, heads: the names of the fields that hold these.
    """
    for name, (types, least, limit) in ranges.items():
        value = getattr(config, name)
        if type(value) not in types or not least <= value < limit:
            kind = "a number" if float in types else "a whole number"
            raise ValueError(f"{name} is {value!r:.40}; {kind} from {least} to below {limit} is expected")
    named, D, H = (getattr(config, name) for name in (activation, width, heads))
    if not isinstance(named, str) or named not in ACTIVATIONS:
        raise ValueError(f"{activation} is {named!r:.40}; known are {', '.join(ACTIVATIONS)}")
    if D % H:
        raise ValueError(f"{width} {D} is no multiple of {heads} {H}")


class State(NamedTuple):
    """What flows from stage to stage; a stage returns it with some fields replaced. No stage above the embeddings reads the ids."""

    tokens: Tensor | None  # (B, S) ids
    token_types: Tensor | None  # (B, S) 0 or 1: from which text of a pair a token is
    mask: Tensor | None  # (B, S) True where there is a token; or (B, 1, S, S) which row attends to which column; None: all
    positions: Tensor | None = None  # (S) or (B, S) of each token; None: as `Positions` counts them
    hidden: Tensor | None = None  # (B, S, D) once the embeddings have run
    pooled: Tensor | None = None  # (B, D) once the pooler has run

    only = classmethod(only)


class Positions(nn.Module):
    """0, 1, ..., S-1 wherever the padding stands, as in transformers; or the positions given: for padding on the left, for texts
    packed into one row, for a start above 0. It has no parameters and is a module of its own so that a method can shift it.
    """

    first = 0  # the position of the first token

    def forward(self, tokens: Tensor, mask: Tensor | None, given: Tensor | None) -> Tensor:
        return torch.arange(tokens.shape[1], device=tokens.device) if given is None else given  # (S), or (S) or (B, S)


class Embeddings(nn.Module):
    def __init__(self, c: BertConfig):
        super().__init__()
        self.word = nn.Embedding(c.vocab_size, c.hidden_size, padding_idx=c.pad_token_id)
        self.token_type = nn.Embedding(c.type_vocab_size, c.hidden_size)
        self.position = nn.Embedding(c.max_position_embeddings, c.hidden_size)
        self.positions = Positions()
        self.norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.dropout = nn.Dropout(c.hidden_dropout_prob)

    def forward(self, state: State) -> State:
        x = self.word(state.tokens) + self.token_type(state.token_types)  # (B, S) -> (B, S, D)
        x = x + self.position(self.positions(state.tokens, state.mask, state.positions))
        return state._replace(hidden=self.dropout(self.norm(x)))


class Attend(nn.Module):
    """softmax(Q K^T / sqrt(d) + (0 where the mask is True, else -inf)) V, dropout on the softmax.

    mask: (B, S), the same columns for all rows; (B, 1, S, S), each row its own; None: every row attends to every column.
    kernel: what computes it; training on a CPU takes another (minift/optim/attention.py).
    """

    kernel = staticmethod(F.scaled_dot_product_attention)

    def __init__(self, dropout: float):
        super().__init__()
        self.p = dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None and mask.ndim == 2:
            mask = mask[:, None, None, :]  # (B, S) -> (B, 1, 1, S): the same for all heads and rows
        return self.kernel(q, k, v, mask, dropout_p=self.p if self.training else 0.0)  # (B, H, S, d)


class Attention(nn.Module):
    def __init__(self, c: BertConfig):
        super().__init__()
        self.heads = c.num_attention_heads
        self.query = nn.Linear(c.hidden_size, c.hidden_size)
        self.key = nn.Linear(c.hidden_size, c.hidden_size)
        self.value = nn.Linear(c.hidden_size, c.hidden_size)
        self.attend = Attend(c.attention_probs_dropout_prob)
        self.output = nn.Linear(c.hidden_size, c.hidden_size)
        self.dropout = nn.Dropout(c.hidden_dropout_prob)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, S, D) -> (B, H, S, d)

        a = self.attend(split(self.query(x)), split(self.key(x)), split(self.value(x)), mask)
        return self.dropout(self.output(a.transpose(1, 2).flatten(2)))  # (B, H, S, d) -> (B, S, D)


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int, activation: str, dropout: float):
        """width: D. inner: F. activation: one of ACTIVATIONS."""
        super().__init__()
        self.hidden = nn.Linear(width, inner)
        self.activation = ACTIVATIONS[activation]
        self.output = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.output(self.activation(self.hidden(x))))  # (B, S, D) -> (B, S, F) -> (B, S, D)


class Layer(nn.Module):
    def __init__(self, c: BertConfig):
        super().__init__()
        self.attention = Attention(c)
        self.attention_norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.feed_forward = FeedForward(c.hidden_size, c.intermediate_size, c.hidden_act, c.hidden_dropout_prob)
        self.feed_forward_norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)

    def forward(self, state: State) -> State:
        x = state.hidden
        x = self.attention_norm(x + self.attention(x, state.mask))
        x = self.feed_forward_norm(x + self.feed_forward(x))
        return state._replace(hidden=x)


class ClsPooler(nn.Module):
    """The first token, transformed: pretrained with BERT's next-sentence task."""

    def __init__(self, c: BertConfig):
        super().__init__()
        self.dense = nn.Linear(c.hidden_size, c.hidden_size)

    def forward(self, state: State) -> State:
        return state._replace(pooled=torch.tanh(self.dense(state.hidden[:, 0])))  # (B, S, D) -> (B, D)


class MeanPooler(nn.Module):
    """The mean over the tokens (Reimers & Gurevych 2019, arXiv:1908.10084, section 3); 0 where a row has none."""

    def forward(self, state: State) -> State:
        return state._replace(pooled=mean_of_tokens(state.hidden, state.mask))


def mean_of_tokens(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """(B, S, D) -> (B, D)"""
    if mask is None:
        return hidden.mean(1)
    mask = tokens_of(mask)
    total = hidden.masked_fill(~mask.unsqueeze(-1), 0.0).sum(1)  # (B, S, D) -> (B, D)
    return total / mask.sum(1, keepdim=True).clamp(min=1)


def tokens_of(mask: Tensor) -> Tensor:
    """A mask (B, S) or (B, 1, S, S) -> (B, S): the columns to which at least one row attends, which are those of tokens."""
    return mask if mask.ndim == 2 else mask.any(2).squeeze(1)


class Bert(Body):
    """The encoder. pool: `cls`, `mean`, or None for tasks that read the hidden states alone.

    Weights start as N(0, initializer_range), biases and the padding row as 0, LayerNorms as 1 and 0, as in transformers.
    """

    Config = BertConfig
    State = State
    Embeddings = Embeddings
    STAGES: ClassVar = {"embeddings": "embeddings", "layer": "layers"}
    FLOWS: ClassVar = {"hidden": "ragged", "mask": "real"}
    POOLS: ClassVar = ("cls", "mean")

    # Role -> regular expression that matches the whole dotted name of a module.
    SITES: ClassVar = {
        "word": r"embeddings\.word",
        "embeddings": r"embeddings",
        "positions": r"embeddings\.positions",
        "query": r"layers\.\d+\.attention\.query",
        "key": r"layers\.\d+\.attention\.key",
        "value": r"layers\.\d+\.attention\.value",
        "attend": r"layers\.\d+\.attention\.attend",
        "attention_output": r"layers\.\d+\.attention\.output",
        "feed_forward_hidden": r"layers\.\d+\.feed_forward\.hidden",
        "feed_forward_output": r"layers\.\d+\.feed_forward\.output",
        "attention_branch": r"layers\.\d+\.attention",
        "feed_forward_branch": r"layers\.\d+\.feed_forward",
        "attention_norm": r"layers\.\d+\.attention_norm",
        "feed_forward_norm": r"layers\.\d+\.feed_forward_norm",
        "layer": r"layers\.\d+",
        "pooler": r"pooler",
    }

    # Module here -> module in transformers' BertModel; {} and {i} = number of the layer; weight and bias keep their names.
    HUGGINGFACE: ClassVar = {
        "embeddings.word": "embeddings.word_embeddings",
        "embeddings.token_type": "embeddings.token_type_embeddings",
        "embeddings.position": "embeddings.position_embeddings",
        "embeddings.norm": "embeddings.LayerNorm",
        "layers.{}.attention.query": "encoder.layer.{i}.attention.self.query",
        "layers.{}.attention.key": "encoder.layer.{i}.attention.self.key",
        "layers.{}.attention.value": "encoder.layer.{i}.attention.self.value",
        "layers.{}.attention.output": "encoder.layer.{i}.attention.output.dense",
        "layers.{}.attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
        "layers.{}.feed_forward.hidden": "encoder.layer.{i}.intermediate.dense",
        "layers.{}.feed_forward.output": "encoder.layer.{i}.output.dense",
        "layers.{}.feed_forward_norm": "encoder.layer.{i}.output.LayerNorm",
        "pooler.dense": "pooler.dense",
    }

    def __init__(self, config: BertConfig, pool: str | None = "cls"):
        super().__init__()
        self.check_pool(pool)
        self.config = config
        self.embeddings = self.Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.pooler = ClsPooler(config) if pool == "cls" else MeanPooler() if pool == "mean" else None
        self.apply(self.initialise)

    def numbering(self) -> list[dict[str, int]]:
        """For every layer the number that the name table uses."""
        return [{"i": i} for i in range(len(self.layers))]

    def begin(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        token_types: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> State:
        """tokens, token_types: (B, S) integers, S <= config.max_length. mask: bool, (B, S), True where there is a token, or
        (B, 1, S, S), True where the token of a row attends to that of a column. positions: (S) or (B, S) integers, in the place
        of those that the model would count. The `cls` pooler reads column 0, even where that is padding.
        """
        return State(tokens, torch.zeros_like(tokens) if token_types is None else token_types, mask, positions)

    def initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx].detach())
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
