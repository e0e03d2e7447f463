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


def test_warm_up_as_a_share_leaves_a_step_that_trains():
    assert [schedules.warmup_steps(0.1, T) for T in (0, 1, 2, 3, 10, 11)] == [0, 0, 1, 1, 1, 2]
    assert [schedules.warmup_steps(0.99, T) for T in (0, 1, 2, 3, 10)] == [0, 0, 1, 2, 9]
    for T in range(1, 60):
        for share in (0.0, 0.06, 0.1, 0.5, 0.9, 0.999):
            factors = [schedules.linear(s, T, schedules.warmup_steps(share, T)) for s in range(T)]
            assert max(factors) == 1.0, "the learning rate reaches its peak"


@pytest.mark.parametrize(
    ("warmup", "steps", "message"),
    [
        (-0.1, 10, "warmup=-0.1: a share from 0 to below 1, or a number of steps"),
        (math.nan, 10, "warmup=nan"),
        (math.inf, 10, "warmup=inf"),
        (2.5, 10, "warmup=2.5.*whole number"),
        (6, 6, "warmup=6: the run has 6 steps, so the learning rate would never reach its peak"),
        (1, 1, "warmup=1: the run has 1 steps"),
        (1e9, 6, "warmup=1000000000: the run has 6"),
    ],
)
def test_a_warm_up_that_cannot_be(warmup, steps, message):
    with pytest.raises(ValueError, match=message):
        schedules.warmup_steps(warmup, steps)


def test_a_number_of_warm_up_steps_below_all():
    assert schedules.warmup_steps(5, 6) == 5
    assert schedules.warmup_steps(5, 0) == 5, "no step, no mistake"


NO_NUMBERS = [math.nan, math.inf, -math.inf, -3.0]


@pytest.mark.parametrize(
    ("name", "options"),
    [("polynomial", {"power": x}) for x in (*NO_NUMBERS, 0.0)]
    + [("polynomial", {"end": x}) for x in (*NO_NUMBERS, 1.0, 1e300)]
    + [("slanted_triangular", {"ratio": x}) for x in (*NO_NUMBERS, 0.5)]
    + [("slanted_triangular", {"cut_frac": x}) for x in (*NO_NUMBERS, 0.0, 1.0)],
)
def test_options_that_cannot_be(name, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* expected"):
        getattr(schedules, name)(0, 10, 2, **options)


def test_polynomial_with_transformers_own_defaults():
    """power 1 is linear; their end is 1e-7 as a learning rate, here a factor on it."""
    expected = reference(lambda o: transformers.get_polynomial_decay_schedule_with_warmup(o, 4, 20), 20)
    for s in range(21):
        assert schedules.polynomial(s, 20, 4, power=1.0, end=1e-7) == pytest.approx(expected[s], abs=1e-14)
        assert schedules.polynomial(s, 20, 4, power=1.0) == pytest.approx(schedules.linear(s, 20, 4), abs=1e-14)


def test_the_factors_of_a_run():
    for T in (0, 1, 2, 30):
        schedules.check_factors(partial(schedules.linear, T=T, W=schedules.warmup_steps(0.1, T)), T)
    with pytest.raises(ValueError, match="0 in all 1 steps, so nothing would train"):
        schedules.check_factors(partial(schedules.linear, T=1, W=1), 1)
    with pytest.raises(ValueError, match="nan at step 3 of 5"):
        schedules.check_factors(lambda s: math.nan if s == 2 else 1.0, 5)
    with pytest.raises(ValueError, match=r"-0\.5 at step 1 of 5"):
        schedules.check_factors(lambda s: -0.5, 5)
