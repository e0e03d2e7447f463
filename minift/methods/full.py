"""Fine-tuning of the body's own parameters: all of them (Devlin et al. 2019, section 4), or those of the top stages alone.

Proved by tests/methods/test_surgery.py (what trains, what stands still) and tests/reference/test_trajectory.py (how).
"""

from torch import nn

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


def full(body: nn.Module) -> None:
    """Everything trains."""
    thaw(body)


def partial(body: nn.Module, *, stages: int = 1) -> None:
    """The top stages and the head train, the stages below stand still (Yosinski et al. 2014, arXiv:1411.1792).

    stages: how many of `body.stages`, counted from the top.
    """
    known = list(body.stages)
    if not 1 <= stages <= len(known):
        found = f"the body has {len(known)}, from {known[0]} to {known[-1]}"
        raise ValueError(f"stages={stages}: {found}; 1 to {len(known)} is expected")
    for stage in known[-stages:]:
        for name in body.stages[stage]:
            thaw(body.get_submodule(name))
