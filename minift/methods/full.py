"""Fine-tuning of the body's own parameters: all of them (Devlin et al. 2019, section 4), or those of the top stages alone.

What the BatchNorms of a model of images do meanwhile, y = gamma (x - mu) / sigma + beta, is `norms`:

    train    gamma and beta train; mu and sigma are those of the batch, and the moving statistics follow them
    affine   gamma and beta train; mu and sigma stay those of the pretraining, in training as in prediction
    frozen   nothing of a BatchNorm changes

On few images the statistics of the pretraining are better than new ones: with 245 photographs, 112 x 112, 4 epochs, train gave
83.7 and 88.2 % of the validation ones (two seeds), affine 89.5 and 90.8 %, frozen 89.5 % (tests/bench/FIGURES.md).

Proved by tests/methods/test_surgery.py (what trains, what stands still) and tests/reference/test_trajectory.py (how).
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from minift.methods.surgery import thaw

EPOCHS = 3
STARTS_AS_PRETRAINED = True


def lr(optimizer: str, width: int) -> float:
    """SGD: 1e-2 (Kornblith et al. 2019, arXiv:1805.08974, appendix: the middle of what their grid chose). AdamW:

    5e-5 (768 / width)^2, at most 3e-4: 5e-5 for BERT-base, 2.8e-5 for BERT-large, 2e-4 for the embedded model.

    A rule of thumb through published ranges: 2e-5 to 5e-5 for BERT-base and -large (Devlin et al. 2019, section 4.1), 3e-5 to 3e-4
    for Google's small BERTs. The embedded model on 2,000 rows of SST-2, 3 epochs, one seed: 81.7 % of the dev set at 5e-5, 81.9 %
    at 1e-4, 82.1 % at 2e-4.
    """
    return 1e-2 if optimizer == "sgd" else min(3e-4, 5e-5 * (768 / width) ** 2)


def full(body: nn.Module, *, norms: str = "train") -> None:
    """Everything trains.

    norms: of BatchNorms: train, affine or frozen, as above.
    """
    thaw(body)
    set_norms(body, norms)


def partial(body: nn.Module, *, stages: int = 1, norms: str = "train") -> None:
    """The top stages and the head train, the stages below stand still (Yosinski et al. 2014, arXiv:1411.1792).

    stages: how many of `body.stages`, counted from the top. norms: as of full.
    """
    known = list(body.stages)
    if not 1 <= stages <= len(known):
        found = f"the body has {len(known)}, from {known[0]} to {known[-1]}"
        raise ValueError(f"stages={stages}: {found}; 1 to {len(known)} is expected")
    for stage in known[-stages:]:
        for name in body.stages[stage]:
            thaw(body.get_submodule(name))
    set_norms(body, norms)


def set_norms(body: nn.Module, norms: str) -> None:
    """Raises ValueError for a word that is not known, and where there is no BatchNorm that it could be about."""
    if norms not in ("train", "affine", "frozen"):
        raise ValueError(f"norms={norms}: known are train, affine and frozen")
    if norms == "train":
        return
    found = [module for module in body.modules() if isinstance(module, _BatchNorm)]
    if not found:
        raise ValueError(f"norms={norms}: a {type(body).__name__} has no BatchNorm")
    body.statistics_move = False
    for module in found:
        if norms == "frozen":
            module.requires_grad_(False)
