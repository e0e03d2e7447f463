"""What every architecture shares: the walk over its stages, what flows between them, and what stands still when nothing trains.

A model file declares, as data, its stages (`STAGES`, `TOP`) and what flows over their boundaries (`FLOWS`), and defines `begin`,
which makes a State of the inputs. Each stage is a module that maps a State to a State.
Proved by tests/models/test_contract_of_a_body.py.
"""

from collections.abc import Iterator
from itertools import islice
from typing import ClassVar, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Body(nn.Module):
    """The network without a task's head. A subclass sets `config`, the modules that `STAGES` and `TOP` name, and `pooler`.

    Frozen means frozen, also after a user's `model.train()`: in a stage in which no parameter trains, dropout is off, and the
    statistics of a BatchNorm move only where its own weight trains. So only what is switched on after the surgery behaves as in
    training, and what is switched on later follows with the next `train()`.
    """

    Config: ClassVar[type]
    State: ClassVar[type]  # a NamedTuple of tensors; its `only` is the function of this file
    SITES: ClassVar[dict[str, str]]  # role -> regular expression that the dotted name of a module matches in full
    STAGES: ClassVar[dict[str, str]]  # stage -> its module, input to output; a ModuleList is a stage for each: layer 0, 1, ...
    TOP: ClassVar[tuple[str, ...]] = ("pooler",)  # modules above the stages, which belong to the last one; None where left out
    FLOWS: ClassVar[dict[str, str]]  # what flows between the stages, as `carried` describes it
    TRANSPOSED: ClassVar[str] = ""  # tensors of HUGGINGFACE that are stored transposed there: regular expression; "": none
    PRE_LN: ClassVar[bool] = False  # whether a LayerNorm stands before each residual branch, and not behind the sum
    statistics_move = True  # of the BatchNorms that train; a method may set it to False

    CAUSAL: ClassVar[bool] = False  # whether a token sees none behind it
    POOLS: ClassVar[tuple[str, ...]]  # what `pool` may be besides None; the first is what a task takes where nothing is said

    pooler: nn.Module | None

    @classmethod
    def check_pool(cls, pool: str | None) -> None:
        if pool not in (None, *cls.POOLS):
            raise ValueError(f"pool {pool!r}: a {cls.__name__} has {' and '.join(cls.POOLS)}")

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """Depth order, input to output: stage -> dotted names of the modules that hold its parameters."""
        stages = {}
        for stage, name in self.STAGES.items():
            module = getattr(self, name)
            if isinstance(module, nn.ModuleList):
                stages |= {f"{stage} {i}": (f"{name}.{i}",) for i in range(len(module))}
            else:
                stages[stage] = (name,)
        stages[list(stages)[-1]] += tuple(name for name in self.TOP if getattr(self, name) is not None)
        return stages

    def walk(self) -> Iterator[nn.Module]:
        """The modules of `stages` in their order, which is that in which `forward` calls them."""
        for names in self.stages.values():
            for name in names:
                yield self.get_submodule(name)

    def begin(self, *inputs: Tensor | None) -> NamedTuple:
        """The State before the first stage."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor | None) -> NamedTuple:
        """From the inputs of `begin` to the State behind the last stage."""
        return self.resume(self.begin(*inputs))

    def resume(self, state: NamedTuple, done: int = 0) -> NamedTuple:
        """Continue from the State that the first `done` modules of `walk` have left."""
        for module in islice(self.walk(), done, None):
            state = module(state)
        return state

    def carried(self, done: int) -> dict[str, str]:
        """The fields of the State that the modules after the first `done` >= 1 of `walk`, or a head, read; each is one of

        unit    (B, ...): one tensor for each unit of the batch
        ragged  (B, S, ...): as long as each unit; what lies behind its length is padding
        real    the mask (B, S) itself, True where there is a token; it follows from the lengths, and is None without padding
        """
        pooled = self.pooler is not None and done == sum(1 for _ in self.walk())
        return {"pooled": "unit"} if pooled else dict(self.FLOWS)

    def train(self, mode: bool = True) -> "Body":
        super().train(mode)
        for names in self.stages.values():
            modules = [self.get_submodule(name) for name in names]
            if not any(p.requires_grad for module in modules for p in module.parameters()):
                for module in modules:
                    module.eval()
        for module in self.modules():
            if isinstance(module, _BatchNorm) and not (self.statistics_move and module.affine and module.weight.requires_grad):
                module.eval()
        return self

    def initialise(self, module: nn.Module) -> None:
        """Give one module new weights; `module.apply(body.initialise)` does so for a whole part."""
        raise NotImplementedError


def only(state_type: type, **fields: Tensor | None) -> NamedTuple:
    """A State with these fields, all others None."""
    return state_type(**dict.fromkeys(state_type._fields) | fields)
