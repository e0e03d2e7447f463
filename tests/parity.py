"""Every mechanism against the reference libraries that are installed: `python -m tests.parity [WORD ...]`.

It runs the tests that prove each mechanism, watches every comparison of float64 numbers in them, and prints a table: mechanism,
reference and its version, largest absolute error, test. `passes` stands where no number that is compared is a float64, as of
tokens. WORD: only the mechanisms and libraries that contain one of the words, as `lora`. A library that is not installed is said.
The exit code is 1 where a comparison fails.
"""

import contextlib
import importlib.metadata
import io
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from minift.tables import counted, table

CHECKOUT = Path(__file__).parents[1]
DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # module -> name under which it is installed, where that is another


class Row(NamedTuple):
    mechanism: str
    library: str  # module
    tests: str  # FILE::FUNCTION in tests/, of which only the cases whose name contains a word are meant: FILE::FUNCTION[word]


TWINS = "test_twin_in_float64"
LOSS = "test_loss_and_gradients_are_those_of_transformers"
ROWS = [
    Row("BERT: hidden states, pooled output, gradients", "transformers", f"reference/test_bert.py::{TWINS}"),
    Row("BERT: dropout in training", "transformers", "reference/test_bert.py::test_dropout_sits_where_the_reference_has_it"),
    Row("RoBERTa", "transformers", f"reference/test_roberta.py::{TWINS}"),
    Row("GPT-2", "transformers", f"reference/test_gpt2.py::{TWINS}"),
    Row("ResNet", "torchvision", f"reference/test_resnet.py::{TWINS}[torchvision]"),
    Row("ResNet", "transformers", f"reference/test_resnet.py::{TWINS}[transformers]"),
    Row("ResNet", "timm", f"reference/test_resnet.py::{TWINS}[timm]"),
    Row("EfficientNet", "torchvision", f"reference/test_efficientnet.py::{TWINS}[torchvision]"),
    Row("EfficientNet", "timm", f"reference/test_efficientnet.py::{TWINS}[timm]"),
    Row("EfficientNet", "transformers", f"reference/test_efficientnet.py::{TWINS}[transformers]"),
    Row("LoRA on a BERT", "peft", "reference/test_lora.py::test_texts"),
    Row("LoRA on a ResNet", "peft", "reference/test_lora.py::test_images"),
    Row("LoRA: rank, alpha, dropout, rsLoRA", "peft", "reference/test_lora.py::test_options"),
    Row("DoRA on a BERT", "peft", "reference/test_dora.py::test_texts"),
    Row("IA3 on a BERT", "peft", "reference/test_ia3.py::test_texts"),
    Row("LoRA, DoRA, IA3 on a GPT-2", "peft", "reference/test_gpt2_methods.py::test_lora_dora_and_ia3_are_those_of_peft"),
    Row("prefix tuning", "peft", f"reference/test_prefix.py::{TWINS}[peft]"),
    Row("prefix tuning", "adapters", f"reference/test_prefix.py::{TWINS}[adapters]"),
    Row("prompt tuning", "peft", f"reference/test_prompt.py::{TWINS}"),
    Row("adapters of Houlsby", "adapters", f"reference/test_houlsby.py::{TWINS}"),
    Row("adapters of Pfeiffer", "adapters", f"reference/test_pfeiffer.py::{TWINS}"),
    Row(
        "BitFit: three steps of SGD",
        "transformers",
        "methods/test_bitfit.py::test_three_steps_of_sgd_on_the_biases_of_a_transformers_twin",
    ),
    Row("AdamW, AMSGrad: trajectories", "torch", "reference/test_optim.py::test_adamw_trajectory"),
    Row("SGD, momentum, Nesterov: trajectories", "torch", "reference/test_optim.py::test_sgd_trajectory"),
    Row("clipping of gradients", "torch", "reference/test_optim.py::test_clipping"),
    Row("schedules with warm-up", "transformers", "reference/test_schedules.py::test_against_transformers"),
    Row("learning rates by layer", "timm", "reference/test_groups.py::test_layer_decay_of_a_bert_as_in_timm"),
    Row("LoRA+: learning rates", "peft", "reference/test_groups.py::test_learning_rates_of_lora_plus_as_in_peft"),
    Row("training loop: 20 steps, losses and weights", "transformers", "reference/test_trajectory.py::test_twenty_steps"),
    Row("loss scaling: trajectory", "torch", "reference/test_precision.py::test_scaler_trajectory"),
    Row(
        "EWC: Fisher information, row by row",
        "torch",
        "optim/test_penalties.py::test_the_fisher_information_is_that_of_a_slow_loop",
    ),
    Row("mixout", "torch", "optim/test_penalties.py::test_mixout_by_hand"),
    Row("distillation of logits", "torch", "optim/test_penalties.py::test_distillation_of_logits_is_the_divergence_of_torch"),
    Row("averages of the weights: EMA", "torch", "optim/test_averaging.py::test_ema_is_that_of_torch"),
    Row(
        "averages of the weights: last epochs",
        "torch",
        "optim/test_averaging.py::test_the_mean_over_the_last_epochs_is_that_of_torch",
    ),
    Row("masked language modelling", "transformers", f"reference/test_masked_lm.py::{LOSS}"),
    Row(
        "causal language modelling, instructions",
        "transformers",
        "reference/test_causal_lm.py::test_loss_and_every_gradient_are_those_of_transformers",
    ),
    Row("greedy generation", "transformers", "reference/test_generation.py::test_greedy_is_that_of_transformers_token_by_token"),
    Row("token classification", "transformers", f"reference/test_token_classification.py::{LOSS}"),
    Row("question answering", "transformers", f"reference/test_question_answering.py::{LOSS}"),
    Row("regression", "transformers", "reference/test_regression.py::test_loss_and_gradients_of_transformers"),
    Row("multi-label classification", "transformers", "reference/test_multi_label.py::test_loss_and_gradients_of_transformers"),
    Row(
        "weighted cross entropy",
        "torch",
        "reference/test_imbalance.py::test_a_step_is_torchs_weighted_cross_entropy_of_all_its_rows",
    ),
    Row("class weights", "sklearn", "reference/test_balance.py::test_class_weights_are_scikit_learns"),
    Row("a probe solved by L-BFGS", "sklearn", "reference/test_logistic.py::test_fit"),
    Row("accuracy, F1, Matthews", "sklearn", "reference/test_metrics.py::test_against_scikit_learn"),
    Row("multi-label F1, average precision", "sklearn", "reference/test_metrics_multilabel.py::test_against_scikit_learn"),
    Row("Pearson, Spearman", "scipy", "reference/test_metrics_regression.py::test_against_scipy"),
    Row("entity F1", "seqeval", "reference/test_metrics_entities.py::test_all_625_strings_in_one_corpus_score_as_in_seqeval"),
    Row("WordPiece", "transformers", "reference/test_tokenizer.py::test_built_from_a_vocabulary_or_read_from_json"),
    Row("byte-level BPE", "transformers", "reference/test_bytelevel.py::test_byte_level_bpe_is_that_of_transformers"),
]


class Watch:
    """A plugin of pytest that keeps of every test how it ended and the largest error of its comparisons in float64."""

    def __init__(self):
        self.ended: dict[str, str] = {}
        self.errors: dict[str, float] = {}
        self.now = ""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.now = nodeid

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.ended[report.nodeid] = report.outcome

    def saw(self, ours, theirs) -> None:
        if isinstance(ours, dict) and isinstance(theirs, dict):
            theirs = {name: theirs[name] for name in ours if name in theirs}  # in the same order
        for one, other in zip(tree_leaves(ours), tree_leaves(theirs), strict=False):
            pair = [x.detach().numpy() if isinstance(x, torch.Tensor) else x for x in (one, other)]
            if any(getattr(x, "dtype", np.dtype(float)) != np.float64 or not isinstance(x, float | np.ndarray) for x in pair):
                continue
            a, b = map(np.asarray, pair)
            if a.shape == b.shape and a.size and np.isfinite(a).all() and np.isfinite(b).all():
                self.errors[self.now] = max(self.errors.get(self.now, 0.0), float(np.abs(a - b).max()))

    @contextlib.contextmanager
    def comparisons(self):
        """torch's assert_close and pytest's approx tell, from here on, what they compare."""
        close, approx, watch = torch.testing.assert_close, pytest.approx, self

        def assert_close(actual, expected, **options):
            __tracebackhide__ = True
            watch.saw(actual, expected)
            close(actual, expected, **options)

        class Approx:
            __array_ufunc__ = None  # of `array == approx(...)`: numpy leaves the comparison to this one

            def __init__(self, expected, **options):
                self.expected, self.real = expected, approx(expected, **options)

            def __eq__(self, actual):
                watch.saw(actual, self.expected)
                return actual == self.real

            __hash__ = None

        torch.testing.assert_close, pytest.approx = assert_close, Approx
        try:
            yield
        finally:
            torch.testing.assert_close, pytest.approx = close, approx


def chosen(words: Iterable[str]) -> list[Row]:
    return [row for row in ROWS if not words or any(word.lower() in f"{row.mechanism} {row.library}".lower() for word in words)]


def run(rows: list[Row]) -> tuple[Watch, str]:
    """(what was seen while the tests of the rows ran, what pytest printed)"""
    watch, said = Watch(), io.StringIO()
    tests = dict.fromkeys(f"{CHECKOUT / 'tests' / row.tests.partition('[')[0]}" for row in rows)
    with watch.comparisons(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        pytest.main(["--rootdir", str(CHECKOUT), "-p", "no:cacheprovider", "--tb=short", *tests], plugins=[watch])
    return watch, said.getvalue()


def is_of(row: Row, nodeid: str) -> bool:
    name, _, word = row.tests.rstrip("]").partition("[")
    test, _, case = nodeid.removeprefix("tests/").partition("[")
    return test == name and word in case


def line(row: Row, watch: Watch) -> list[str]:
    """The row of the table."""
    ended = {test: how for test, how in watch.ended.items() if is_of(row, test)}
    errors = [watch.errors[test] for test in ended if test in watch.errors]
    if "failed" in ended.values() or not ended:
        found = "FAILED" if ended else "did not run"
    elif set(ended.values()) == {"skipped"}:
        found = "skipped with this version"
    else:
        found = "passes" if not errors else f"{max(errors):.1e}" if any(errors) else "0"
    return [row.mechanism, f"{row.library} {version(row.library)}", found, f"tests/{row.tests.partition('[')[0]}"]


def version(library: str) -> str | None:
    """None where it is not installed."""
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(library, library))
    except importlib.metadata.PackageNotFoundError:
        return None


def main(words: list[str]) -> int:
    rows = chosen(words)
    if not rows:
        print(f"no mechanism is called {' or '.join(words)}", file=sys.stderr)
        return 2
    missing = sorted({row.library for row in rows if version(row.library) is None})
    there = [row for row in rows if row.library not in missing]
    watch, said = run(there) if there else (Watch(), "")
    lines = [line(row, watch) for row in there]
    print(table(["mechanism", "reference", "largest error in float64", "proved by"], lines))
    for library in missing:
        print(f"not installed: {library}, for {', '.join(row.mechanism for row in rows if row.library == library)}")
    failed = any(found in ("FAILED", "did not run") for _, _, found, _ in lines)
    cases = sum(how == "passed" for how in watch.ended.values())
    print(f"{counted(cases, 'case')} compared" + (f"\n\n{said}" if failed else ""))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
