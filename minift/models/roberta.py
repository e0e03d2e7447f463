"""RoBERTa (Liu et al. 2019, arXiv:1907.11692, section 2), equal to transformers' `RobertaModel`; so are XLM-R and DistilRoBERTa.

It is BERT with one difference in the embeddings: positions count from the padding id p upwards, and over tokens alone,

    position = p + 1, p + 2, ...  of a token,    p  of padding

so that padding on either side moves no position, and texts of up to max_position_embeddings - p - 1 tokens fit (512 of 514). The
published checkpoints have one token type, p = 1 and layer_norm_eps 1e-5.

Axes as in bert.py.
Proved by tests/reference/test_roberta.py: every hidden state, the pooled output and every gradient, float64, 1e-10.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from minift.models.bert import Bert, BertConfig, Embeddings


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """As BertConfig; defaults are those of transformers' RobertaConfig."""

    vocab_size: int = 50265
    pad_token_id: int = 1

    @property
    def max_length(self) -> int:
        return self.max_position_embeddings - self.pad_token_id - 1

    @property
    def lm_activation(self) -> Callable[[Tensor], Tensor]:
        return F.gelu  # whatever hidden_act is, as in transformers


class RobertaPositions(nn.Module):
    """p + 1, p + 2, ... over what is not the padding id p, or the positions given, as they are."""

    def __init__(self, padding: int):
        super().__init__()
        self.padding = padding
        self.first = padding + 1

    def forward(self, tokens: Tensor, mask: Tensor | None, given: Tensor | None) -> Tensor:
        if given is not None:
            return given
        real = tokens.ne(self.padding).long()
        return real.cumsum(1) * real + self.padding  # (B, S)


class RobertaEmbeddings(Embeddings):
    def __init__(self, c: RobertaConfig):
        super().__init__(c)
        self.position = nn.Embedding(c.max_position_embeddings, c.hidden_size, padding_idx=c.pad_token_id)
        self.positions = RobertaPositions(c.pad_token_id)


class Roberta(Bert):
    """The encoder. pool: `cls`, `mean` or None, as of BERT; `cls` reads <s>, through a pooler that pretraining has not trained."""

    Config = RobertaConfig
    Embeddings = RobertaEmbeddings
