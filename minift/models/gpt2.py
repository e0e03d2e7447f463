"""GPT-2, the decoder of Radford et al. 2019 (section 2.3), equal to transformers' `GPT2Model`; DistilGPT2 is the same network.

    x      = dropout(word[t] + position[i])                                 embeddings
    a      = softmax(Q K^T / sqrt(d) + causal) V,  [Q K V] = LN(x) W_qkv    in each of H heads, dropout on the softmax
    x      = x + dropout(a W_o)                                             attention, first half of a layer
    x      = x + dropout(gelu(LN(x) W_1) W_2)                               feed-forward, second half
    h      = LN(x)                                                          behind the last layer, a part of its stage
    pooled = h[last token], or the mean of h over the tokens                pooler `last`, `mean`

causal is 0 where a token comes before another or is the same, else -inf. The LayerNorms stand before the branches (pre-LN: `PRE_LN`
is True), gelu is the tanh approximation. Differs from transformers in two things. A position is counted over what a token sees, not
over the columns, so that padding on either side moves no position; transformers counts so in `generate` alone. The pooler finds the
last token by the mask, not by the id of padding, which a text may contain.

What methods, generation and packing rely on: every residual branch is a module whose output is what is added; `attend` and
`positions` are modules without parameters; no module is used twice in one forward. The mask may be longer than the tokens, where
keys and values from before are put before the new ones by a wrapper of `attend`:

    attend     (q, k, v, mask): k and v of T >= S columns, the S queries are the last S of them; mask (B, T) or (B, 1, S, T)
    positions  (tokens, mask, given): of the S tokens, how many of the T columns before it each sees, if none are given
    packing    mask (B, 1, S, S), True within a text: it needs not be causal, `attend` sees to that, and positions start anew
    LM head    logits = h E^T, with the word vectors E of the embeddings (tied; without a bias)

Axes: B batch, S sequence, T columns that are seen, D width, H heads, d = D/H width of a head, F feed-forward width, V vocabulary.
Proved by tests/reference/test_gpt2.py: every hidden state, the logits and every gradient, float64, 1e-10.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from minift.models.bert import Attend, FeedForward, MeanPooler, State, check_fields, tokens_of
from minift.models.body import Body

# The published ones: what their config.json has otherwise than the defaults below
SIZES = {
    "gpt2": {},
    "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
    "distilgpt2": {"n_layer": 6},
}


def sized(*, n_layer: int = 12, n_head: int = 12, n_embd: int = 768, n_positions: int = 1024) -> dict[str, int]:
    """The fields of a config that make a size; options of `--model gpt2:n_layer=4,n_embd=128,n_head=4 --init random`."""
    return {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "n_positions": n_positions}


@dataclass(frozen=True)
class Gpt2Config:
    """The fields of a `config.json` that shape the computation, under their Hugging Face names; defaults are gpt2's."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # F; None means 4 D
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    embd_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    classifier_dropout: float | None = None  # of the head of token-classification; None means 0.1
    eos_token_id: int = 50256
    pad_token_id: int | None = None  # what batches are filled up with; None means eos_token_id. Nothing depends on it

    head_bias: ClassVar[bool] = False  # of a head on what is pooled: as transformers has it, without bias and dropout
    head_dropout: ClassVar[float] = 0.0
    DROPOUT: ClassVar = {"dropout": ("embd_pdrop", "resid_pdrop"), "attention_dropout": ("attn_pdrop",)}  # flag -> fields

    @property
    def width(self) -> int:
        """D"""
        return self.n_embd

    @property
    def max_length(self) -> int:
        """The most tokens of a text that have a position each."""
        return self.n_positions

    @property
    def inner(self) -> int:
        """F"""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def token_dropout(self) -> float:
        """Of a head on the hidden states."""
        return 0.1 if self.classifier_dropout is None else self.classifier_dropout

    def __post_init__(self):
        if self.pad_token_id is None:
            object.__setattr__(self, "pad_token_id", self.eos_token_id)
        # field -> types, smallest value, first that is too large, as of BERT
        ranges = dict.fromkeys(("vocab_size", "n_positions"), ((int,), 1, 2**31))
        ranges |= dict.fromkeys(("n_embd", "n_head"), ((int,), 1, 2**20))
        ranges |= {} if self.n_inner is None else {"n_inner": ((int,), 1, 2**20)}
        ranges |= {"n_layer": ((int,), 1, 1000)} | dict.fromkeys(("eos_token_id", "pad_token_id"), ((int,), 0, self.vocab_size))
        ranges |= dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), ((int, float), 0, 1))
        ranges |= {} if self.classifier_dropout is None else {"classifier_dropout": ((int, float), 0, 1)}
        ranges |= dict.fromkeys(("layer_norm_epsilon", "initializer_range"), ((int, float), 0, 100))
        check_fields(self, ranges, "activation_function", "n_embd", "n_head")


class Positions(nn.Module):
    """Of each token, how many columns before it it sees: 0, 1, 2, ... over the tokens of a text, wherever padding stands and
    whatever is packed beside it; or the positions given. Padding has 0, or what the last token before it has.
    """

    first = 0  # the position of the first token

    def forward(self, tokens: Tensor, mask: Tensor | None, given: Tensor | None) -> Tensor:
        S = tokens.shape[1]
        if given is not None:
            return given  # (S) or (B, S)
        if mask is None:
            return torch.arange(S, device=tokens.device)
        if mask.ndim == 4:
            return (mask.squeeze(1).tril(mask.shape[-1] - S).sum(-1) - 1).clamp(min=0)  # (B, 1, S, T) -> (B, S)
        return (mask.cumsum(1)[:, -S:] - 1).clamp(min=0)  # (B, T) -> (B, S)


class Embeddings(nn.Module):
    def __init__(self, c: Gpt2Config):
        super().__init__()
        self.word = nn.Embedding(c.vocab_size, c.n_embd)
        self.position = nn.Embedding(c.n_positions, c.n_embd)
        self.positions = Positions()
        self.dropout = nn.Dropout(c.embd_pdrop)

    def forward(self, state: State) -> State:
        x = self.word(state.tokens) + self.position(self.positions(state.tokens, state.mask, state.positions))
        return state._replace(hidden=self.dropout(x))  # (B, S) -> (B, S, D)


class CausalAttend(Attend):
    """As of BERT, and a token sees no column behind it. Padding sees itself, as an empty row would be NaN before torch 2.5."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        S, T = q.shape[2], k.shape[2]
        p = self.p if self.training else 0.0
        if mask is None and S in (1, T):  # the last token alone sees every column
            return self.kernel(q, k, v, dropout_p=p, is_causal=S > 1)  # (B, H, S, d)
        causal = torch.ones(S, T, dtype=torch.bool, device=q.device).tril(T - S)
        if mask is None:
            return self.kernel(q, k, v, causal, dropout_p=p)
        mask = mask[:, None, None, :] if mask.ndim == 2 else mask  # (B, T) -> (B, 1, 1, T)
        return self.kernel(q, k, v, mask & causal | causal.triu(T - S), dropout_p=p)


class Attention(nn.Module):
    def __init__(self, c: Gpt2Config):
        super().__init__()
        self.heads = c.n_head
        self.qkv = nn.Linear(c.n_embd, 3 * c.n_embd)
        self.attend = CausalAttend(c.attn_pdrop)
        self.output = nn.Linear(c.n_embd, c.n_embd)
        self.dropout = nn.Dropout(c.resid_pdrop)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, S, 3 D) -> 3 x (B, H, S, d)
        a = self.attend(q, k, v, mask)
        return self.dropout(self.output(a.transpose(1, 2).flatten(2)))  # (B, H, S, d) -> (B, S, D)


class Layer(nn.Module):
    def __init__(self, c: Gpt2Config):
        super().__init__()
        self.attention_norm = nn.LayerNorm(c.n_embd, c.layer_norm_epsilon)
        self.attention = Attention(c)
        self.feed_forward_norm = nn.LayerNorm(c.n_embd, c.layer_norm_epsilon)
        self.feed_forward = FeedForward(c.n_embd, c.inner, c.activation_function, c.resid_pdrop)

    def forward(self, state: State) -> State:
        x = state.hidden
        x = x + self.attention(self.attention_norm(x), state.mask)
        x = x + self.feed_forward(self.feed_forward_norm(x))
        return state._replace(hidden=x)


class Final(nn.Module):
    """The LayerNorm behind the last layer."""

    def __init__(self, c: Gpt2Config):
        super().__init__()
        self.norm = nn.LayerNorm(c.n_embd, c.layer_norm_epsilon)

    def forward(self, state: State) -> State:
        return state._replace(hidden=self.norm(state.hidden))


class LastPooler(nn.Module):
    """The last token, which alone has seen the whole text; column 0 of a row without any."""

    def forward(self, state: State) -> State:
        if state.mask is None:
            return state._replace(pooled=state.hidden[:, -1])  # (B, S, D) -> (B, D)
        mask = tokens_of(state.mask)
        columns = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * columns).argmax(1)  # (B, S) -> (B)
        return state._replace(pooled=state.hidden[torch.arange(len(last), device=last.device), last])


class Gpt2(Body):
    """The decoder. pool: `last`, `mean`, or None for tasks that read the hidden states alone.

    Weights start as N(0, initializer_range), those of the two modules that a branch ends in as N(0, initializer_range / sqrt(2 L))
    of L layers (section 2.3), biases as 0, LayerNorms as 1 and 0, as in transformers.
    """

    Config = Gpt2Config
    State = State
    STAGES: ClassVar = {"embeddings": "embeddings", "layer": "layers"}
    TOP: ClassVar = ("final", "pooler")
    FLOWS: ClassVar = {"hidden": "ragged", "mask": "real"}
    PRE_LN: ClassVar = True
    CAUSAL: ClassVar = True
    POOLS: ClassVar = ("last", "mean")

    # Role -> regular expression that the dotted name of a module matches in full.
    SITES: ClassVar = {
        "word": r"embeddings\.word",
        "embeddings": r"embeddings",
        "positions": r"embeddings\.positions",
        "qkv": r"layers\.\d+\.attention\.qkv",
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

    # Module here -> module in transformers' GPT2Model; {} and {i} = number of the layer; weight and bias keep their names.
    HUGGINGFACE: ClassVar = {
        "embeddings.word": "wte",
        "embeddings.position": "wpe",
        "layers.{}.attention_norm": "h.{i}.ln_1",
        "layers.{}.attention.qkv": "h.{i}.attn.c_attn",
        "layers.{}.attention.output": "h.{i}.attn.c_proj",
        "layers.{}.feed_forward_norm": "h.{i}.ln_2",
        "layers.{}.feed_forward.hidden": "h.{i}.mlp.c_fc",
        "layers.{}.feed_forward.output": "h.{i}.mlp.c_proj",
        "final.norm": "ln_f",
    }
    TRANSPOSED: ClassVar = r"h\.\d+\.(attn|mlp)\.c_(attn|fc|proj)\.weight"  # stored there as (I, O): it calls them Conv1D

    def __init__(self, config: Gpt2Config, pool: str | None = None):
        super().__init__()
        self.check_pool(pool)
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        self.final = Final(config)
        self.pooler = LastPooler() if pool == "last" else MeanPooler() if pool == "mean" else None
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
        """tokens: (B, S) integers. mask: bool, (B, T), True where there is a token, or (B, 1, S, T), True where the token of a row
        sees that of a column, if that stands before it; T = S but for what a wrapper of `attend` puts before. token_types: None.
        positions: (S) or (B, S) integers, which win over those that the model would count.
        """
        if token_types is not None:
            raise ValueError("a GPT-2 has no token types")
        return State(tokens, None, mask, positions)

    def initialise(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Attention | FeedForward):  # `apply` comes to them after the modules in them
            nn.init.normal_(module.output.weight, std=std / math.sqrt(2 * self.config.n_layer))
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
