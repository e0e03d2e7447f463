"""Which stages train when: functions from a step and an epoch to the stages that are switched on.

A stage that is off gets no gradient, no weight decay and no state in the optimiser, its dropout is off and the statistics of its
BatchNorms stand still; on its first step it is at its own step 1. What is never on is not trained at all: only stages that the
method trains are ever switched. Proved by tests/test_unfreeze.py.
"""

UNFREEZING = {
    "gradual": "minift.optim.unfreezing:gradual",
    "chain": "minift.optim.unfreezing:chain",
    "all-at": "minift.optim.unfreezing:all_at",
}


def gradual(stages: list[str], step: int, epoch: int, *, every: int = 0) -> list[str]:
    """The head in the first epoch, with each epoch one stage more, from the top.

    Howard & Ruder 2018, arXiv:1801.06146, section 3.3.

    stages: those that train, input to output, the head last. every: a stage more after so many steps; 0: with each epoch.
    """
    at_least("every", every, 0)
    more = step // every if every else epoch
    return stages[-1 - more :] if more < len(stages) else stages


def chain(stages: list[str], step: int, epoch: int, *, every: int = 0) -> list[str]:
    """One alone at a time: the head, then each stage from the lowest, then all of them.

    Felbo et al. 2017, arXiv:1708.00524, section 3.3.

    every: how many steps each phase has, the last one what is left; 0: an epoch. The paper goes on where validation stops rising.
    """
    at_least("every", every, 0)
    phase = step // every if every else epoch
    order = [stages[-1], *stages[:-1]]
    return [order[phase]] if phase < len(order) else stages


def all_at(stages: list[str], step: int, epoch: int, *, n: int = 1) -> list[str]:
    """The head alone for n epochs, then everything (Kumar et al. 2022, arXiv:2202.10054: a probe first, fine-tuning after it)."""
    at_least("n", n, 1)
    return [stages[-1]] if epoch < n else stages


def at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}={value}: {least} or more is expected")
