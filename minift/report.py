"""What the commands print."""

import shlex
import shutil
import textwrap
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
from torch.nn import BatchNorm2d

from minift.methods.surgery import lengthened
from minift.metrics.classification import per_class


def table(header: list[str], rows: list[list]) -> str:
    """Columns two blanks apart: numbers to the right, words to the left."""
    lines = [header, *([as_text(cell) for cell in row] for row in rows)]
    columns = []
    for i, cells in enumerate(zip(*lines, strict=True)):
        width = max(map(len, cells))
        words = any(isinstance(row[i], str) and row[i] for row in rows)
        columns.append([cell.ljust(width) if words else cell.rjust(width) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def as_text(cell: str | int | float) -> str:
    return cell if isinstance(cell, str) else f"{cell:,}" if isinstance(cell, int) else f"{cell:.4f}"


def class_table(labels: list[str], confusion: np.ndarray) -> str:
    """Precision, recall, F1 and rows of every class; the confusion matrix beside them where it is not too wide."""
    figures = per_class(confusion)
    header = ["label", *figures]
    rows = [[label, *(float(v[i]) for v in list(figures.values())[:3]), int(figures["rows"][i])] for i, label in enumerate(labels)]
    if len(labels) <= 8:
        header += [f"-> {label[:12]}" for label in labels]
        rows = [row + [int(n) for n in confusion[i]] for i, row in enumerate(rows)]
    return table(header, rows)


def bars(values: list[float], width: int = 60) -> str:
    """A curve in one line of text; values: 0 or more."""
    blocks = " ▁▂▃▄▅▆▇█"
    picked = [values[round(i * (len(values) - 1) / max(1, width - 1))] for i in range(min(width, len(values)))]
    return "".join(blocks[round(value / (max(values) or 1) * 8)] for value in picked)


def short(text: str, spare: int = 0) -> str:
    """A text in one line of the terminal, less `spare` columns."""
    width = max(40, min(shutil.get_terminal_size((120, 24)).columns, 160) - spare)
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def print_data(parts: dict, data: dict, labels: list[str]) -> None:
    for line in dict.fromkeys(f"data   {shown(part.path)}: {'; '.join(part.decided)}" for part in parts.values()):
        print(line)
    counted = labels if len(labels) <= 6 else []
    rows = []
    for split, part in parts.items():
        counts = Counter(part.labels)
        rows.append([split, len(part), *(counts[label] for label in counted), *data[split].describe().values()])
    print(table(["split", "rows", *counted, *data["train"].describe()], rows))
    if not counted:
        counts = Counter(parts["train"].labels).most_common()
        print(f"{len(labels)} labels: {', '.join(f'{label} {n}' for label, n in counts[:6])}, ... {counts[-1][0]} {counts[-1][1]}")
    absent = [label for label in labels if "valid" in parts and label not in set(parts["valid"].labels)]
    if absent:
        more = f" and {len(absent) - 5} more" if absent[5:] else ""
        print(f"note: no validation row has the label {', '.join(absent[:5])}{more}, so what is said of it there means nothing")
    seen = {tuple(row.values()) for row in parts["train"].inputs()}
    for split in [split for split in parts if split != "train"]:
        shared = sum(tuple(row.values()) in seen for row in parts[split].inputs())
        if shared:
            print(f"note: {shared:,} of the {len(parts[split]):,} {split} rows are in the training rows too")
    print()


def print_model(model, groups: list, described: str, accumulate: int) -> None:
    """What will train: stage by stage the parameters, the rate, the decay and the mode."""
    parts = {stage: [model.body.get_submodule(name) for name in names] for stage, names in model.body.stages.items()} | {
        "head": [model.head]
    }
    model.train()
    rows = []
    for stage, modules in parts.items():
        parameters = [p for module in modules for p in module.parameters()]
        mine = [group for group in groups if group.stage == stage]
        decays = " / ".join(f"{d:g}" for d in sorted({g.weight_decay for g in mine}, reverse=True))
        norms = any(isinstance(m, BatchNorm2d) for module in modules for m in module.modules())
        mode = "train" if modules[0].training else "frozen, statistics too" if norms else "frozen, no dropout"
        rows.append([stage, sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad),
                     f"{mine[0].lr:g}" if mine else "", decays, mode])  # fmt: skip
    rows.append(["total", sum(row[1] for row in rows), sum(row[2] for row in rows), "", "", ""])
    print(f"model  {described}")
    print(table(["stage", "parameters", "trainable", "lr", "weight decay", "mode"], rows))
    if taken := lengthened(model.body):
        print(f"note: the method takes {taken} positions before every text")
    if accumulate > 1 and any(isinstance(m, BatchNorm2d) and m.training for m in model.modules()):
        print(f"note: --accumulate {accumulate}: BatchNorm takes its statistics from each batch by itself, not from all of a step")
    print()


def print_settings(given, options, open_ones: dict, foreign: set[str]) -> None:
    """Every flag but the foreign ones with its value, beside where the value came from."""
    by_origin: dict[str, list[str]] = {}
    for f in fields(options):
        value = getattr(options, f.name)
        origin = open_ones[f.name][1] if f.name in open_ones else "default" if getattr(given, f.name) == f.default else "given"
        if value is not None and f.name not in foreign:
            by_origin.setdefault(origin, []).append(f"--{f.name.replace('_', '-')} {value}")
    width = max(map(len, by_origin))
    for origin, flags in by_origin.items():
        print(
            textwrap.fill(
                "  ".join(flags),
                120,
                break_on_hyphens=False,
                break_long_words=False,
                initial_indent=f"{origin.ljust(width)}  ",
                subsequent_indent=" " * (width + 2),
            )
        )
    print()


def print_results(directory: Path, parts: dict, data: dict, task, scores: dict, progress, options, to_hf: bool) -> None:
    """to_hf: whether transformers can have the run."""
    print()
    if scores:
        header = next(iter(scores.values())).metrics
        print(
            table(
                [f"epoch {progress.best_epoch}" if progress.best_epoch else "", "rows", *header],
                [[split, len(data[split]), *s.metrics.values()] for split, s in scores.items()],
            )
        )
        last = list(scores)[-1]
        print(f"\n{class_table(task.labels, task.confusion(scores[last].logits, data[last].labels))}  ({last})\n")
    if "valid" in scores:
        probabilities = scores["valid"].logits.double().softmax(-1).numpy()
        right = probabilities[np.arange(len(probabilities)), data["valid"].labels]
        print("worst of the validation rows")
        rows, inputs = parts["valid"], parts["valid"].inputs()
        for i in np.argsort(right, kind="stable")[:5]:
            guess = task.labels[int(probabilities[i].argmax())]
            head = f"  {rows.place(i)}{rows.labels[i]}, predicted {guess} {probabilities[i].max():.3f}  "
            print(head + short(" | ".join(inputs[i].values()), len(head)))
        print()
    run, scored = shlex.quote(str(directory)), options.test or options.valid
    print(f"predict   python -m minift.predict {run} {parts['train'].EXAMPLE}")
    print(f"evaluate  python -m minift.evaluate {run} --data {'DATA' if scored in (None, 'none') else shlex.quote(scored)}")
    if to_hf:
        print(f"export    python convert.py {run} --to hf --out {shlex.quote(f'{directory}-hf')}")


def shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
