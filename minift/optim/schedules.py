"""Learning rate schedules: pure functions from the step to a factor on a group's own learning rate.

Axes of time: s the step, 0 for the first; T all steps of the run; W steps of warm-up, in which the factor rises from 0 to 1 in a
straight line, s / W, so that the first step of a run with warm-up has the factor 0. From W on each falls in its own way.

Equal to transformers' schedules of the same names and to ULMFiT's formula at every step (tests/reference/test_schedules.py).
Defaults are transformers' too, but for those of `polynomial`. Google's BERT code counts its linear decay from step 0, so that its
learning rate drops by W/T where the warm-up ends; `linear` does not.
"""

import math
from collections.abc import Callable

SCHEDULES = {
    "constant": "minift.optim.schedules:constant",
    "linear": "minift.optim.schedules:linear",
    "cosine": "minift.optim.schedules:cosine",
    "polynomial": "minift.optim.schedules:polynomial",
    "inverse-sqrt": "minift.optim.schedules:inverse_sqrt",
    "slanted-triangular": "minift.optim.schedules:slanted_triangular",
}


def warmup_steps(warmup: float, steps: int) -> int:
    """W of a run of `steps` steps: `warmup` below 1 is a share of them, rounded up; from 1 on it is a number of steps.

    A share leaves one step at least, so that a run of a single step trains; transformers rounds up without that limit. Raises
    ValueError for a warmup that is negative, not finite or no whole number of steps, and for a number W >= steps > 0, with which
    the learning rate would never reach its peak.
    """
    if not (math.isfinite(warmup) and warmup >= 0):
        raise ValueError(f"warmup={warmup}: a share from 0 to below 1, or a number of steps, is expected")
    if warmup < 1:
        return min(math.ceil(steps * warmup), max(0, steps - 1))
    if warmup != int(warmup):
        raise ValueError(f"warmup={warmup}: from 1 on it is a number of steps, and a whole number is expected")
    if 0 < steps <= warmup:
        raise ValueError(f"warmup={int(warmup)}: the run has {steps} steps, so the learning rate would never reach its peak")
    return int(warmup)


def check_factors(schedule: Callable[[int], float], steps: int) -> None:
    """Raises ValueError where a run of `steps` steps could not train: a factor is negative or not finite, or all of them are 0.

    schedule: the step -> the factor, with T, W and options bound.
    """
    factors = [schedule(s) for s in range(steps)]
    for s, factor in enumerate(factors):
        if not (math.isfinite(factor) and factor >= 0):
            raise ValueError(f"the schedule's factor is {factor} at step {s + 1} of {steps}; 0 or more, and finite, is expected")
    if factors and not any(factors):
        raise ValueError(f"the schedule's factor is 0 in all {steps} steps, so nothing would train")


def constant(s: int, T: int, W: int) -> float:
    """1"""
    return s / W if s < W else 1.0


def linear(s: int, T: int, W: int) -> float:
    """(T - s) / (T - W)"""
    return s / W if s < W else max(0.0, (T - s) / max(1, T - W))


def cosine(s: int, T: int, W: int) -> float:
    """(1 + cos(pi (s - W) / (T - W))) / 2   (Loshchilov & Hutter 2017, arXiv:1608.03983, one cycle)"""
    return s / W if s < W else 0.5 * (1 + math.cos(math.pi * min(1.0, (s - W) / max(1, T - W))))


def polynomial(s: int, T: int, W: int, power: float = 2.0, end: float = 0.0) -> float:
    """end + (1 - end) (1 - (s - W) / (T - W))^power

    power: above 0. end: the factor after the last step, 0 <= end < 1. transformers' defaults are power 1, which is `linear`, and
    as end the learning rate 1e-7.
    """
    if not (math.isfinite(power) and power > 0 and 0 <= end < 1):
        raise ValueError(f"power={power}, end={end}: power above 0 and 0 <= end < 1 are expected")
    return s / W if s < W else end + (1 - end) * max(0.0, 1 - (s - W) / max(1, T - W)) ** power


def inverse_sqrt(s: int, T: int, W: int) -> float:
    """sqrt(W / s), with W = 10,000 and no rise where there is no warm-up"""
    return s / W if s < W else 1 / math.sqrt(s / W if W else s / 10_000 + 1)


def slanted_triangular(s: int, T: int, W: int, cut_frac: float = 0.1, ratio: float = 32.0) -> float:
    """(1 + p (ratio - 1)) / ratio, where p rises to 1 until cut = floor(T cut_frac) and falls to 0 from there on.

    Howard & Ruder 2018, arXiv:1801.06146, section 3.2. It has its own rise: W is not used. Two corners differ from the paper: a
    run so short that cut is 0 starts at the top, where the paper divides by 0; and p stops at 0, below which it would fall in the
    last steps where T cut_frac is no whole number.
    """
    if not (0 < cut_frac < 1 and math.isfinite(ratio) and ratio >= 1):
        raise ValueError(f"cut_frac={cut_frac}, ratio={ratio}: 0 < cut_frac < 1 and ratio >= 1 are expected")
    cut = math.floor(T * cut_frac)
    p = s / cut if s < cut else 1 - (s - cut) / (max(1, cut) * (1 / cut_frac - 1))
    return (1 + max(0.0, p) * (ratio - 1)) / ratio
