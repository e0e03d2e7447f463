"""Schedules against transformers' lambdas and against the formula of ULMFiT's paper, at every step."""

import math
from functools import partial

import pytest
import torch
import transformers

from minift.optim import schedules


def reference(make, steps: int) -> list[float]:
    """The factors of a transformers scheduler, a step before the first to one past the last."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(steps + 2):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize(("T", "W"), [(20, 0), (20, 2), (37, 10), (10, 9), (1, 0), (3, 2)])
@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "polynomial", "polynomial 3", "inverse_sqrt"])
def test_against_transformers(name, T, W):
    make, ours = {
        "constant": (lambda o: transformers.get_constant_schedule_with_warmup(o, W), schedules.constant),
        "linear": (lambda o: transformers.get_linear_schedule_with_warmup(o, W, T), schedules.linear),
        "cosine": (lambda o: transformers.get_cosine_schedule_with_warmup(o, W, T), schedules.cosine),
        "polynomial": (
            lambda o: transformers.get_polynomial_decay_schedule_with_warmup(o, W, T, lr_end=0.0, power=2.0),
            schedules.polynomial,
        ),
        "polynomial 3": (
            lambda o: transformers.get_polynomial_decay_schedule_with_warmup(o, W, T, lr_end=0.1, power=3.0),
            partial(schedules.polynomial, power=3.0, end=0.1),
        ),
        "inverse_sqrt": (lambda o: transformers.get_inverse_sqrt_schedule(o, W), schedules.inverse_sqrt),
    }[name]
    expected = reference(make, T)
    for s in range(T + 1):
        assert ours(s, T, W) == pytest.approx(expected[s], abs=1e-14), s


@pytest.mark.parametrize(("share", "steps"), [(0.0, 20), (0.1, 25), (0.06, 1000), (0.5, 3), (5, 20)])
def test_warm_up_as_a_share_or_in_steps(share, steps):
    ratio = "warmup_ratio" if transformers.__version__.startswith("4.") else "warmup_steps"  # which takes either in 5
    arguments = {ratio: share} if share < 1 else {"warmup_steps": int(share)}
    arguments = transformers.TrainingArguments(output_dir="unused", report_to=[], **arguments)
    assert schedules.warmup_steps(share, steps) == arguments.get_warmup_steps(steps)


@pytest.mark.parametrize(("T", "cut_frac", "ratio"), [(100, 0.1, 32.0), (240, 0.25, 10.0), (1000, 0.1, 32.0), (40, 0.5, 2.0)])
def test_slanted_triangular_is_the_papers_formula(T, cut_frac, ratio):
    cut = math.floor(T * cut_frac)
    for t in range(T + 1):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        assert schedules.slanted_triangular(t, T, 0, cut_frac, ratio) == pytest.approx((1 + p * (ratio - 1)) / ratio, abs=1e-14)
    assert schedules.slanted_triangular(0, T, 0, cut_frac, ratio) == pytest.approx(1 / ratio)
    assert schedules.slanted_triangular(cut, T, 0, cut_frac, ratio) == 1.0
    assert schedules.slanted_triangular(T, T, 0, cut_frac, ratio) == pytest.approx(1 / ratio)


def test_slanted_triangular_on_a_run_of_a_few_steps():
    assert schedules.slanted_triangular(0, 5, 0) == 1.0
    for T in range(1, 40):
        assert all(1 / 32 <= schedules.slanted_triangular(t, T, 0) <= 1 for t in range(T + 1))
