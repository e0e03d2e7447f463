"""What runs have recorded, as one page: `python -m minift.report RUN [RUN ...]`.

`sections` turns the files of the runs into parts: texts, grids, charts, rows. It knows neither HTML nor terminals; `as_html` makes
one self-contained page of the parts, its charts drawn by matplotlib, and `as_text` prints them where there is no matplotlib.

All is read from what a run keeps, but for two things. The weight drift needs the checkpoint that the run has started from. The rows
of the largest loss need the data, and the model scores them again. What is not there any more is left out, and said.
Proved by tests/test_page.py.
"""

import base64
import html
import io
import json
import math
import re
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch.nn import Parameter

from minift.data.decoding import open_image, to_rgb
from minift.data.splits import read_splits
from minift.errors import UserError, is_there, look_up
from minift.fields import shown
from minift.finetuned import load
from minift.flags import typed
from minift.merging import started_from
from minift.methods.surgery import merge, mergeable, plain_tensors
from minift.optim.unfreezing import UNFREEZING
from minift.options import layout_of, options_of
from minift.pretrained import read, read_object
from minift.runs import fingerprints, read_record, repeated
from minift.source import changed_by_stage
from minift.specs import parse
from minift.tables import as_text as cell
from minift.tables import bars, counted, table
from minift.tasks import TASKS
from minift.tasks.task import Mark

POINTS = 300  # of a curve
LABELS = 12  # of a confusion matrix that is shown whole
LISTED = 30  # lines of a long list
LONG = 30  # characters from which on a cell goes over several lines
CHARACTERS = 600  # of a text
THUMBNAIL = 160  # pixels


# ---- parts ----


@dataclass
class Text:
    text: str


@dataclass
class Grid:
    header: list[str]
    rows: list[list]
    bars: tuple[int, ...] = ()  # columns whose numbers are shown as bars too
    heat: tuple[int, ...] = ()  # columns that are shaded by their share of the row


@dataclass
class Line:
    label: str
    x: list[float]
    y: list[float]  # NaN: a gap
    points: bool = False  # marked one by one
    colour: int | None = None  # number of the run that it belongs to; None: its own


@dataclass
class Chart:
    title: str
    x: str
    y: str
    lines: list[Line]
    marks: list[tuple[float, str]] = field(default_factory=list)  # (x, what happens there)
    diagonal: bool = False


@dataclass
class Row:
    """A row of the data. fields: (name, an image file, or pieces of a text: (piece, kind, name))."""

    said: str
    fields: list[tuple[str, Path | list[tuple[str, str, str]]]]


@dataclass
class Section:
    title: str
    parts: list[Text | Grid | Chart | Row]
    folded: bool = False


# ---- runs ----


@dataclass
class Recorded:
    """The files of a run."""

    name: str
    directory: Path
    record: dict  # config.json
    events: dict[str, list[dict]]  # split -> those of metrics.jsonl
    result: dict  # result.json; empty where the run has not finished

    @property
    def flags(self) -> dict:
        return self.record["flags"]


def find_runs(places: Iterable[str]) -> list[Recorded]:
    """The runs in these directories, each a run, or one of several seeds. Raises UserError where there is none."""
    directories = []
    for place in map(Path, places):
        inside = [place] if (place / "config.json").is_file() else [file.parent for file in place.glob("*/config.json")]
        if not inside:
            raise UserError(f"{place}: no run in it; expected the directory of a run, as runs/NAME, or of the runs of --seeds")
        directories += sorted(inside, key=lambda path: (len(path.name), path.name))
    directories = list(dict.fromkeys(directories))
    names = [path.resolve().name for path in directories]
    return [read_run(path, name if names.count(name) == 1 else str(path)) for path, name in zip(directories, names, strict=True)]


def read_run(directory: Path, name: str) -> Recorded:
    record, file = read_record(directory / "config.json"), directory / "metrics.jsonl"
    events: dict[str, list[dict]] = {"train": [], "valid": []}
    lines = file.read_text(encoding="utf-8").split("\n") if is_there(file) else []
    for number, line in enumerate(lines[:-1], 1):  # behind the last end of a line stands nothing, or what is being written
        try:
            event = json.loads(line)
            place = ("l2",) if "l2" in event else ("step", "epoch")  # --solver lbfgs tries penalties
            events[event["split"]].append(event | {name: event[name] + 0 for name in place})
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{file}:{number}: expected a JSON object with step, epoch and split; was the file edited?") from None
    file = directory / "result.json"
    result = read_object(file) if is_there(file) else {}
    kinds = {"seconds": dict, "parameters": dict, "steps": int, "precision": str} if result else {}
    if wrong := [name for name, kind in kinds.items() if not isinstance(result.get(name), kind)]:
        raise UserError(f"{file}: {wrong[0]} is {shown(result.get(wrong[0]))}; was the file edited?")
    return Recorded(name, directory, record, events, result)


def sections(runs: list[Recorded], worst: int, device: str | None) -> list[Section]:
    """worst: rows of the largest loss for each run."""
    found = [Section("Results", results(runs)), Section("Curves", curves(runs)), Section("Settings", settings(runs))]
    for run in runs:
        title = f"{run.name}: " if len(runs) > 1 else ""
        parts = {
            "By label": by_label(run),
            "Calibration": calibration(run),
            "Stages": stages(run),
            "Rows of the largest loss": largest_losses(run, worst, device) if worst else [],
        }
        found += [Section(title + what, inside, folded=len(runs) > 1) for what, inside in parts.items() if inside]
    return [section for section in found if section.parts]


# ---- what all runs have ----


def results(runs: list[Recorded]) -> list:
    parts, done = [], [run for run in runs if run.result]
    for run in runs:
        flags, result = run.flags, run.result
        kept = f", epoch {result['best_epoch']} kept" if result.get("best_epoch") else ""
        state = f"{counted(result['steps'], 'step')}{kept}, in {result['precision']}" if result else "not finished"
        what = f"{flags['task']}, {Path(flags['model']).name}, {flags['method']}; {counted(flags['epochs'], 'epoch')}, {state}"
        parts.append(
            Text(f"{run.name}: {what}; minift {run.record['versions'].get('minift')}, torch {run.record['versions'].get('torch')}")
        )
    names = list(dict.fromkeys(name for run in done for split in ("valid", "test") for name in run.result.get(split, ())))
    rows = [
        [run.name, split, *(run.result[split].get(name, "") for name in names)]
        for run in done
        for split in ("valid", "test")
        if split in run.result
    ]
    parts += [Grid(["run", "split", *names], rows)] if rows else []
    for run in done:
        if tried := [event for event in run.events["valid"] if "l2" in event]:
            names = [name for name in tried[0] if name not in ("split", "l2")]
            lines = [[f"{one['l2']:g}", *(one[name] for name in names)] for one in tried]
            parts.append(Grid([f"{run.name}: l2", *names], lines))
        if by := run.result.get("by"):
            header = next(iter(by.values()))
            parts.append(
                Grid([f"{run.name}, by {run.flags['by']}", *header], [[value, *one.values()] for value, one in by.items()])
            )
    if done:
        phases = list(done[0].result["seconds"])
        if len(done) == 1:
            seconds = [[phase, round(seconds)] for phase, seconds in done[0].result["seconds"].items()]
            parts.append(Grid(["phase", "seconds"], seconds, bars=(1,)))
        else:
            seconds = [[run.name, *(round(run.result["seconds"][phase]) for phase in phases)] for run in done]
            parts.append(Grid(["run", *(f"{phase}, s" for phase in phases)], seconds))
        counts = [(*run.result["parameters"].values(), run.result["peak_memory_mb"]) for run in done]
        header = ["run", "trainable parameters", "all parameters", "peak memory, MB"]
        parts.append(Grid(header, [[run.name, *count] for run, count in zip(done, counts, strict=True)]))
    return parts


def settings(runs: list[Recorded]) -> list:
    """Of several runs the flags in which they differ; of one those that were given."""
    if len(runs) == 1:
        (run,) = runs
        defaults = {f.name: f.default for f in fields(options_of(run.flags["task"]))}
        given = {name: value for name, value in run.record["given"].items() if value is not None and value != defaults.get(name)}
        return [Text("Given: " + ("  ".join(typed(name, value) for name, value in given.items()) or "nothing"))]
    names = list(dict.fromkeys(name for run in runs for name in run.flags if name != "out"))
    differ = [name for name in names if len({str(run.flags.get(name)) for run in runs}) > 1]
    if not differ:
        return [Text("The runs have the same flags.")]
    shown = [[name.replace("_", "-"), *("" if (v := run.flags.get(name)) is None else str(v) for run in runs)] for name in differ]
    return [Grid(["flag", *(run.name for run in runs)], shown)]


def curves(runs: list[Recorded]) -> list[Chart]:
    """Loss, metrics, and of each run the learning rates."""
    one, loss = len(runs) == 1, []
    for number, run in enumerate(runs):
        x, y = thinned(run.events["train"])
        loss.append(Line("training" if one else f"{run.name}, training", x, y, colour=number))
        valid = [event for event in run.events["valid"] if "step" in event and event.get("loss") is not None]
        if valid:
            at, values = [event["step"] for event in valid], [event["loss"] for event in valid]
            loss.append(Line("validation" if one else f"{run.name}, validation", at, values, True, number))
    most = max(len(run.events["train"]) for run in runs)
    mean = f", mean of {math.ceil(most / POINTS)} steps" if most > POINTS else ""
    charts = [Chart(f"Loss{mean}", "step", "loss", loss)] if any(line.x for line in loss) else []
    rates: list[Chart] = []
    for run in runs:
        for chart in learning_rates(run):
            same = next((other for other in rates if str((other.lines, other.marks)) == str((chart.lines, chart.marks))), None)
            if same is None:
                rates.append(chart if one else replace(chart, title=f"{chart.title} of {run.name}"))
            else:
                same.title += f", {run.name}"
    return charts + metric_curves(runs) + rates


def thinned(events: list[dict]) -> tuple[list[float], list[float]]:
    """(steps, losses) of training: means of as many steps each as leave at most POINTS of them."""
    known = np.array([(event["step"], event["loss"]) for event in events if event.get("loss") is not None]).reshape(-1, 2)
    size = max(1, math.ceil(len(known) / POINTS))
    means = [known[i : i + size].mean(0).tolist() for i in range(0, len(known), size)]
    return [x for x, _ in means], [y for _, y in means]


def metric_curves(runs: list[Recorded]) -> list[Chart]:
    """Over the epochs: of one run all metrics, those from -1 to 1 together; of several runs those that one of them monitors."""
    found: dict[str, list[Line]] = {}
    for number, run in enumerate(runs):
        events = [event for event in run.events["valid"] if "epoch" in event]
        names = [name for name in (events[0] if events else ()) if name in look_up(TASKS, run.flags["task"], "--task").METRICS]
        for name in names if len(runs) == 1 else [name for name in names if name == run.flags.get("monitor")]:
            values = [math.nan if event.get(name) is None else event[name] for event in events]
            one, epochs = len(runs) == 1, [event["epoch"] for event in events]
            line = Line(name, epochs, values, True) if one else Line(run.name, epochs, values, True, number)
            small = one and all(not abs(value) > 1 for value in values)
            found.setdefault("metrics" if small else name, []).append(line)
    return [Chart(f"Validation: {name}", "epoch", "metric" if name == "metrics" else name, lines) for name, lines in found.items()]


def learning_rates(run: Recorded) -> list[Chart]:
    """Of every stage over the steps, a gap where it is frozen; stages of the same learning rates share a line.

    Of a stage with several, as those of LoRA+, the lowest; of a run that has not finished the head's, which is what is logged.
    """
    # steps alone: l-bfgs has none, and beside them are the figures of penalties after an epoch
    events, found = [event for event in run.events["train"] if "lr" in event], run.result.get("stages")
    if not events:
        return []
    logged = np.array([event["lr"] for event in events])  # of the highest stage that trains: the head, if it has weights
    rates = {stage: one["lr"][0] for stage, one in found.items() if one["lr"]} if found else {"head": 1.0}
    rates = {stage: rate / list(rates.values())[-1] for stage, rate in rates.items()}
    on, marks = [list(rates)] * len(events), []
    if found and run.flags.get("unfreeze"):
        unfreezing = parse(run.flags["unfreeze"], UNFREEZING, "--unfreeze")
        on = [unfreezing(list(rates), event["step"] - 1, event["epoch"] - 1) for event in events]
        before: list[str] = []
        for event, now in zip(events, on, strict=True):
            if new := [stage for stage in now if stage not in before]:
                marks.append((event["step"], "+ " + spans(new, list(rates))))
            before = now
    alike: dict[tuple, list[str]] = {}
    for stage, rate in rates.items():
        alike.setdefault((rate, tuple(stage in now for now in on)), []).append(stage)
    picked = np.unique(np.linspace(0, len(events) - 1, POINTS).round().astype(int))
    lines = []
    for (rate, trains), stages in alike.items():
        if not any(trains):
            continue
        y = np.where(trains, logged * rate, math.nan)[picked]
        lines.append(Line(spans(stages, list(rates)), [events[i]["step"] for i in picked], y.tolist()))
    lines.reverse()  # what is unfrozen last is drawn last: it would be hidden behind an equal learning rate of a longer line
    return [Chart("Learning rate", "step", "learning rate", lines, marks)]


def spans(stages: list[str], order: list[str]) -> str:
    """`layer 0 to layer 5, head`: stages that follow one another said together."""
    said, at = [], sorted(order.index(stage) for stage in stages)
    for first in [i for i in at if i - 1 not in at]:
        last = first
        while last + 1 in at:
            last += 1
        said.append(order[first] if first == last else f"{order[first]} to {order[last]}")
    return ", ".join(said)


# ---- what each run has ----


def last_details(run: Recorded) -> tuple[str, dict]:
    """(the split that was scored last, what result.json has of it besides the metrics)"""
    return next(reversed(run.result.get("details", {}).items()), ("", {}))


def by_label(run: Recorded) -> list[Text | Grid]:
    """Figures of every label, and the confusion matrix; of many labels the lowest and the most frequent confusions."""
    split, details = last_details(run)
    parts = []
    if scalars := {name: value for name, value in details.items() if isinstance(value, int | float)}:
        parts.append(Grid([f"{split} rows", ""], [[name, value] for name, value in scalars.items()]))
    figures = details.get("by_label", {})
    if figures:
        names, shown = list(next(iter(figures.values()))), list(figures)
        if len(figures) > LISTED:
            shown = sorted(figures, key=lambda label: figures[label]["f1"])[:LISTED]
            parts.append(Text(f"The {LISTED} of {len(figures)} labels with the lowest F1."))
        rows = [[label, *figures[label].values()] for label in shown]
        parts.append(Grid([f"label ({split} rows)", *names], rows, bars=(1 + names.index("f1"),)))
    if confusion := details.get("confusion"):
        if len(confusion) <= LABELS:
            labels = list(confusion)
            rows = [[label, *(confusion[label].get(other, 0) for other in labels)] for label in labels]
            header = ["right \\ predicted", *labels]
            parts.append(Grid(header, rows, heat=tuple(range(1, len(header)))))
        else:
            wrong = [(n, a, b) for a, row in confusion.items() for b, n in row.items() if a != b]
            rows = [[a, b, n] for n, a, b in sorted(wrong, key=lambda one: -one[0])[:LISTED]]
            parts += [Grid(["right", "predicted", "rows"], rows, bars=(2,))] if rows else []
    return parts


def calibration(run: Recorded) -> list:
    """How often the model is right, against how sure it is."""
    split, details = last_details(run)
    found = details.get("calibration")
    if not found:
        return []
    bins = found["bins"]
    line = Line("rows by score", [one["score"] for one in bins], [one["accuracy"] for one in bins], points=True)
    error = f"Expected calibration error {found['error']:.4f}: the mean distance from the diagonal, weighted by rows."
    return [
        Text(f"{error} The score of a row is the probability of the label that is predicted ({split} rows)."),
        Chart("Accuracy against score", "mean score", "accuracy", [line], diagonal=True),
        Grid(["score from", *list(bins[0])[1:]], [[f"{one['above']:.1f}", *list(one.values())[1:]] for one in bins], bars=(1,)),
    ]


def stages(run: Recorded) -> list[Text | Grid]:
    """Parameters, learning rate and weight drift of every stage."""
    found = run.result.get("stages")
    if not found:
        return []
    moved, note = drift(run)
    rows = [
        [stage, moved.get(stage, ""), " / ".join(f"{lr:.3g}" for lr in one["lr"]), one["parameters"], one["trainable"]]
        for stage, one in found.items()
    ]
    return [Grid(["stage", "drift, %", "learning rate", "parameters", "trainable"], rows, bars=(1,)), Text(note)]


def drift(run: Recorded) -> tuple[dict[str, float], str]:
    """(stage -> 100 ||theta - theta_0|| / ||theta_0|| over the weights that the run has started from, what to say of it)"""
    place = run.directory / "model"
    try:
        checkpoint = read(place)
        start = (checkpoint.origin or started_from(place)).tensors
    except UserError as error:
        return {}, f"Drift is left out: {error}"
    body, note = checkpoint.tuned_body(), "Drift: ‖θ − θ₀‖ / ‖θ₀‖ over the weights of the stage that come from the checkpoint."
    if mergeable(body):
        merge(body)
    else:
        note += f" What {checkpoint.method} adds beside them is not counted."
    weights = {name: tensor for name, tensor in plain_tensors(body).items() if isinstance(tensor, Parameter)}
    changes = changed_by_stage(body.stages, weights, start)
    return {stage: 100 * change for stage, change in changes.items() if change is not None}, note


def largest_losses(run: Recorded, number: int, device: str | None) -> list[Text | Row]:
    """Of the validation rows, or of the test rows where there are none."""
    try:
        return rows_of(run, number, device)
    except (UserError, OSError) as error:
        return [Text(f"Left out: {error}")]


def rows_of(run: Recorded, number: int, device: str | None) -> list[Text | Row]:
    if not run.result:
        raise UserError("the run has not finished")
    given = repeated(options_of(run.flags["task"]), run.record, {})
    if "-" in (given.train, given.valid, given.test):
        raise UserError("the rows came from standard input")
    tuned = load(run.directory, device)
    task = tuned.task
    if not task.by_row:
        raise UserError(f"the units of {run.flags['task']} in this run are no rows")
    parts = read_splits(given, type(task), layout_of(given, task.LAYOUT))
    if changed := [split for split, sha in fingerprints(given, parts).items() if sha != run.record["data"].get(split)]:
        raise UserError(f"the {changed[0]} data has changed since the run began")
    split = "valid" if "valid" in parts else "test"
    if split not in parts:
        raise UserError("the run has neither validation nor test rows")
    examples = parts[split]
    print(f"{run.name}: scoring the {len(examples):,} {split} rows again", file=sys.stderr)
    scores, described = tuned.score(examples)
    then, now = run.result[split]["loss"], scores.metrics["loss"]
    worst = np.argsort(-scores.losses, kind="stable")[:number]
    rows, losses = examples.take(worst), scores.losses[worst]
    said = f"Of the {split} rows, scored again: loss {now:.4f}, in the run {then:.4f}."
    if described:
        said += f" Over all of them: {', '.join(f'{name}: {value}' for name, value in described.items())}."
    inputs = zip(rows.inputs(), tuned.predict_rows(rows), losses, strict=True)
    shown = [row_of(rows, i, task, prediction, content, loss) for i, (content, prediction, loss) in enumerate(inputs)]
    legend = [
        ("right and predicted", "both", ""),
        ("  ", "", ""),
        ("missed", "right", ""),
        ("  ", "", ""),
        ("wrong", "predicted", ""),
    ]
    marked = any(kind for row in shown for _, value in row.fields if isinstance(value, list) for _, kind, _ in value)
    return [Text(said), *([Row("", [("spans", legend)])] if marked else []), *shown]


def row_of(rows, i: int, task, prediction: dict, content: dict, loss: float) -> Row:
    marked, found = task.marked(rows, i, prediction), []
    for name, value in content.items():
        if name == "image":
            found.append((name, Path(value)))
        elif marked is None or not (isinstance(value, list) or value == marked[0]):
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            found.append((name, pieces(text, [], [])))
    said = f"{rows.place(i)}{task.compare(rows, i, prediction)}; loss {loss:.2f}"
    return Row(said, found + ([] if marked is None else [("", pieces(*marked))]))


def pieces(text: str, right: list[Mark], predicted: list[Mark]) -> list[tuple[str, str, str]]:
    """A text cut where spans begin and end, as (piece, kind, name of the span): kind is both, right, predicted or empty.

    Of a long one what is around the spans.
    """
    marks = [*right, *predicted]
    first, last = 0, len(text)
    if last > CHARACTERS:
        around = CHARACTERS // 3
        first = max(0, min((mark.start for mark in marks), default=0) - around)
        last = min(last, max(max((mark.end for mark in marks), default=0) + around, first + CHARACTERS))
    cuts = sorted({first, last} | {at for mark in marks for at in (mark.start, mark.end) if first < at < last})
    found = [(f"({first:,} more characters) … ", "", "")] if first else []
    for a, b in pairwise(cuts):
        names = [next((mark.name for mark in some if mark.start <= a and b <= mark.end), None) for some in (right, predicted)]
        inside = tuple(name is not None for name in names)
        kind = {(True, True): "both", (True, False): "right", (False, True): "predicted"}.get(inside, "")
        said = list(dict.fromkeys(name for name in names if name))
        found.append((text[a:b], kind, " → ".join(said)))
    return found + ([(f" … ({len(text) - last:,} more characters)", "", "")] if last < len(text) else [])


# ---- for the terminal ----


def as_text(parts: list[Section]) -> str:
    return "\n\n".join(f"==== {section.title}\n\n" + "\n\n".join(map(part_as_text, section.parts)) for section in parts)


def part_as_text(part) -> str:
    if isinstance(part, Text):
        return part.text
    if isinstance(part, Grid):
        return table(part.header, part.rows)
    if isinstance(part, Chart):
        lines = []
        for line in part.lines:
            values = [y for y in line.y if not math.isnan(y)]
            if values:
                curve = bars([y - min(0, *values) for y in values])
                x = [x for x, y in zip(line.x, line.y, strict=True) if not math.isnan(y)]
                ends = f"{x[0]:g} to {x[-1]:g}: from {values[0]:.4g} to {values[-1]:.4g}"
                lines.append([line.label, curve, f"{part.x} {ends}"])
        marks = [f"{part.x} {x:g}: {what}" for x, what in part.marks]
        return "\n".join([part.title, table(["", "", ""], lines).lstrip("\n"), *marks])
    shown = [part.said] if part.said else []
    for name, value in part.fields:
        text = str(value) if isinstance(value, Path) else "".join(f"[{t} | {f'{k} {n}'.strip()}]" if k else t for t, k, n in value)
        shown.append(f"    {name}: {text}" if name else f"    {text}")
    return "\n".join(shown)


# ---- HTML ----

# Colours of the charts: what stands in for each in matplotlib; in light and in dark, each of a contrast of 3 or more to the page.
INK, GRID = "#ab0cfe", "#ab0cff"
COLOURS = [f"#ab0c{i:02x}" for i in range(8)]
LIGHT = ("#1f6fb4", "#c4501b", "#2a8a4a", "#8a4fb3", "#a8324a", "#0f8b8d", "#7a6a00", "#5a5f6b")
DARK = ("#6cb2f2", "#f09a63", "#6fcf8d", "#c79be8", "#f08299", "#5fd0d2", "#d9c64a", "#b3bac7")

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1c2128; --dim: #57606a; --line: #d0d7de; --bar: #cfe3f5;
  --accent: 31 111 180; --shade: #00000059;
  --both: #c9ecd3; --right: #cfe3f5; --predicted: #fbd5d0; LIGHT }
@media (prefers-color-scheme: dark) { :root {
  --page: #14181d; --ink: #e3e8ee; --dim: #9aa5b1; --line: #343c46; --bar: #1f4566;
  --accent: 108 178 242; --shade: #ffffff66; --both: #1f4d2e; --right: #1f4566; --predicted: #662a25; DARK } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 1120px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.4rem; margin: 8px 0; } h2, summary { font-size: 1.1rem; font-weight: 600; margin: 28px 0 10px; }
summary { cursor: pointer; }
p { margin: 6px 0; max-width: 80ch; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 20px; }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: 4px; }
svg { width: 100%; height: auto; display: block; } svg text { font-family: system-ui, sans-serif !important; }
/* A table wider than the page scrolls by itself: a shadow stands at each edge behind which there is more, and a bar below. The two
   covers move with the table and hide the shadow of an edge that is reached. */
.scroll { overflow-x: auto; margin: 12px 0; background:
  linear-gradient(to right, var(--page) 40%, transparent) left / 36px 100% no-repeat local,
  linear-gradient(to left, var(--page) 40%, transparent) right / 36px 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left top / 18px calc(100% - 1px) no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right top / 18px calc(100% - 1px) no-repeat scroll; }
.scroll::-webkit-scrollbar { height: 8px; } .scroll::-webkit-scrollbar-thumb { background: var(--dim); border-radius: 4px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 10px; border-bottom: 1px solid var(--line); text-align: left; overflow-wrap: normal; max-width: 40ch; }
th { color: var(--dim); font-weight: 600; vertical-align: bottom; }
th.n, td.n { text-align: right; } td { white-space: nowrap; }
td.long { white-space: normal; min-width: 30ch; overflow-wrap: anywhere; }
td.bar { min-width: 110px; background: linear-gradient(to right, var(--bar) var(--w), transparent var(--w)); }
article { border-top: 1px solid var(--line); padding: 10px 0; display: flow-root; } article p { display: flow-root; }
article img { float: left; margin: 0 12px 6px 0; max-width: 160px; }
@media (max-width: 600px) { body { font-size: 14px; } th, td { padding: 3px 6px; } td.bar { min-width: 80px; } }
.name { color: var(--dim); margin-right: 6px; } .flag { white-space: nowrap; }
mark { color: inherit; border-radius: 3px; padding: 0 2px; } mark small { color: var(--dim); margin-left: 4px; }
mark.both { background: var(--both); } mark.right { background: var(--right); border-bottom: 2px dashed; }
mark.predicted { background: var(--predicted); border-bottom: 2px solid; }
"""


def as_html(title: str, found: list[Section]) -> str:
    """One page that needs nothing besides itself."""
    style = STYLE
    for name, colours in (("LIGHT", LIGHT), ("DARK", DARK)):
        style = style.replace(name, " ".join(f"--c{i}: {colour};" for i, colour in enumerate(colours)))
    body = "".join(section_as_html(section, number) for number, section in enumerate(found))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>\n'
        f"<body><main><h1>{html.escape(title)}</h1>\n{body}</main></body></html>\n"
    )


def section_as_html(section: Section, number: int) -> str:
    title, parts, at = html.escape(section.title), [], 0
    while at < len(section.parts):
        charts = []
        while at < len(section.parts) and isinstance(section.parts[at], Chart):
            charts.append(chart_as_html(section.parts[at], f"{number}-{at}"))
            at += 1
        if charts:
            parts.append(f'<div class="charts">{"".join(charts)}</div>')
        else:
            parts.append(part_as_html(section.parts[at]))
            at += 1
    content = "\n".join(parts)
    if section.folded:
        return f"<details><summary>{title}</summary>\n{content}</details>\n"
    return f"<section><h2>{title}</h2>\n{content}</section>\n"


def part_as_html(part: Text | Grid | Row) -> str:
    if isinstance(part, Text):
        text = re.sub(r"(?<!\S)--[a-z][a-z0-9-]*", r"<span class=flag>\g<0></span>", html.escape(part.text))  # broken at no hyphen
        return f"<p>{text}</p>"
    return grid_as_html(part) if isinstance(part, Grid) else row_as_html(part)


def grid_as_html(grid: Grid) -> str:
    tallest = {i: max((abs(row[i]) for row in grid.rows if is_number(row[i])), default=0) for i in grid.bars}
    numbers = {i for i in range(len(grid.header)) if any(is_number(row[i]) for row in grid.rows)}
    names = [html.escape(name).replace("_", "_<wbr>") for name in grid.header]  # a long name may be broken there
    header = (f"<th{' class=n' * (i in numbers)}>{name}</th>" for i, name in enumerate(names))
    lines = [f"<tr>{''.join(header)}</tr>"]
    for row in grid.rows:
        total, cells = sum(row[i] for i in grid.heat), []
        for i, value in enumerate(row):
            css, style = "n" if is_number(value) else "long" if len(cell(value)) > LONG else "", ""
            if i in grid.bars and is_number(value) and tallest[i]:
                css, style = css + " bar", f"--w: {100 * abs(value) / tallest[i]:.1f}%"
            elif i in grid.heat and value:
                style = f"background: rgb(var(--accent) / {0.08 + 0.42 * value / total:.2f})"
            style = f' style="{style}"' if style else ""
            cells.append(f'<td class="{css}"{style}>{html.escape(cell(value))}</td>')
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return f'<div class="scroll" tabindex="0"><table>{"".join(lines)}</table></div>'


def is_number(value) -> bool:
    return isinstance(value, int | float)


def row_as_html(row: Row) -> str:
    shown = []
    for name, value in row.fields:
        if isinstance(value, Path):
            shown.append(f"{thumbnail(value)}<p>{html.escape(str(value))}</p>")
            continue
        text = ""
        for piece, kind, label in value:
            named = f"<small>{html.escape(label)}</small>" if label else ""
            text += f'<mark class="{kind}" title="{kind}">{html.escape(piece)}{named}</mark>' if kind else html.escape(piece)
        shown.append(f"<p>{f'<span class=name>{html.escape(name)}</span>' if name else ''}{text}</p>")
    said = f"<p><strong>{html.escape(row.said)}</strong></p>" if row.said else ""
    return f"<article>{''.join(shown)}{said}</article>"


def thumbnail(path: Path) -> str:
    try:
        image = to_rgb(open_image(path))
    except (OSError, ValueError) as error:
        return f"<p>({html.escape(str(error))})</p>"
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    held = io.BytesIO()
    image.save(held, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}">'


def chart_as_html(chart: Chart, key: str) -> str:
    """An inline SVG whose colours are variables of the page. key: makes the names in it differ from those of other charts."""
    from matplotlib import rc_context

    ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK)
    plain = {"svg.fonttype": "none", "svg.hashsalt": key, "text.parse_math": False, "font.size": 9, "axes.spines.top": False}
    with rc_context(ink | plain | {"axes.spines.right": False, "grid.color": GRID}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that matplotlib's font does not have: the browser has them
        figure = drawn(chart)
        held = io.BytesIO()
        figure.savefig(held, format="svg", transparent=True, metadata={"Date": None})
    svg = held.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for i, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--c{i})")
    svg = svg.replace(INK, "var(--ink)").replace(GRID, "var(--line)")
    title = html.escape(chart.title, quote=True)
    return (
        f'<figure><figcaption>{title}</figcaption>{svg.replace("<svg ", f"""<svg role="img" aria-label="{title}" """, 1)}</figure>'
    )


def drawn(chart: Chart):
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.8, 3.3), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(linewidth=0.6)
    if chart.diagonal:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--", label="perfectly calibrated")
    for number, line in enumerate(chart.lines):
        faint = not line.points and any(other.points for other in chart.lines)
        colour = COLOURS[(number if line.colour is None else line.colour) % len(COLOURS)]
        label = f" {line.label}" if line.label.startswith("_") else line.label  # matplotlib would leave it out
        axes.plot(line.x, line.y, color=colour, label=short(label), linewidth=1.2 if faint else 1.6, alpha=0.55 if faint else 1,
                  marker="o" if line.points else None, markersize=3.5)  # fmt: skip
    low, high = axes.get_xlim()
    written = -math.inf
    for x, what in chart.marks:
        axes.axvline(x, color=INK, linewidth=0.7, linestyle=":")
        if x - written > 0.06 * (high - low):
            axes.annotate(what, (x, 0.98), (3, 0), axes.get_xaxis_transform(), "offset points", rotation=90, va="top", fontsize=8)
            written = x
    low, high = axes.get_ylim()
    if chart.marks:  # room for them above the lines: a letter of 8 points takes about 0.03 of the height
        high = low + (high - low) / (1 - min(0.5, 0.03 * max(len(what) for _, what in chart.marks)))
        axes.set_ylim(low, high)
    if not 1e-3 <= max(abs(low), abs(high)) < 1e4:
        axes.yaxis.set_major_formatter(lambda y, _: with_exponent(y, max(abs(low), abs(high))))
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    if chart.x in ("step", "epoch"):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if len(chart.lines) > 1 or chart.diagonal:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def with_exponent(y: float, largest: float) -> str:
    """A tick, as 1.5e-4, whole beside the axis: matplotlib would write the power of ten in a corner. largest: of the axis."""
    power = math.floor(math.log10(largest))
    digits = round(y / 10**power, 6)
    return f"{digits:g}e{power}" if digits else "0"


def short(label: str) -> str:
    return label if len(label) <= 34 else f"{label[:16]}…{label[-17:]}"
