"""The model/config.json of a run, edited by hand: every field, with values that do not belong there: one line, or a right run."""

import copy
import itertools
import json
import math
import shutil

import pytest
from tiny import TEXTS, converted_directory, converted_resnet, photographs, rows_file

import minift
import train
from minift.errors import UserError

ABSENT = object()
VALUES = [ABSENT, None, "x", -1, 0, 1.5, [], {}, True, 1e9, math.nan, 10**400]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """name -> (directory of the run, inputs, labelled data)"""
    place = tmp_path_factory.mktemp("runs")
    rows, photos = rows_file(place / "rows.csv", 12), photographs(place / "photos", 2)
    bert, resnet = converted_directory(place / "bert"), converted_resnet(place / "resnet")
    common = ["--epochs", "0", "--precision", "float32", "--valid", "none"]
    texts = ["--model", str(bert), "--train", str(rows), *common]
    images = ["--task", "image-classification", "--model", str(resnet), "--train", str(photos), "--workers", "0", *common]
    kinds = {"text": texts, "lora": [*texts, "--method", "lora:rank=2"], "image": images}
    for name, flags in kinds.items():
        train.main([*flags, "--out", str(place / name)])
    files = [str(photos / "ants" / "0.jpg")]
    return {name: (place / name, files if name == "image" else TEXTS, photos if name == "image" else rows) for name in kinds}


def paths(value, path=()):
    """The value itself, every field of it, and the first entry of each list."""
    found = [path]
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in entries:
        found += paths(inner, (*path, key))
    return found


def edited(config: dict, path: tuple, value) -> dict:
    if not path:
        return value
    inner = config = copy.deepcopy(config)
    for key in path[:-1]:
        inner = inner[key]
    if value is ABSENT:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return config


def use(directory, inputs, data) -> list[dict]:
    """All that a stranger's run is used for."""
    tuned = minift.load(directory, "cpu")
    predictions = tuned.predict(inputs)
    tuned.score(tuned.task.read(str(data), tuned.layout))
    return predictions


@pytest.mark.parametrize("name", ["text", "lora", "image"])
def test_every_field_of_a_run_edited_by_hand(runs, name, tmp_path):
    directory, inputs, data = runs[name]
    run = tmp_path / "run"
    shutil.copytree(directory, run)
    file = run / "model" / "config.json"
    config = json.loads(file.read_text())
    assert len(use(run, inputs, data)) == len(inputs)
    wrong, refused, taken = [], 0, 0
    flags = [path for path in paths(config) if path[:1] == ("recipe",) and path[1:] and path[1] != "train"]  # nobody reads them
    for path, value in itertools.product((path for path in paths(config) if path not in flags), VALUES):
        if path or value is not ABSENT:
            file.write_text(json.dumps(edited(config, path, value)))
            try:
                predictions = use(run, inputs, data)
                assert len(predictions) == len(inputs) and all(math.isfinite(one["score"]) for one in predictions)
                taken += 1
            except UserError as error:
                refused += 1
                if "\n" in str(error) or len(str(error)) > 700:
                    wrong.append(f"{path} = {str(value)[:20]}: {len(str(error))} characters: {str(error)[:200]}")
            except Exception as error:
                shown = "absent" if value is ABSENT else str(value)[:20]
                wrong.append(f"{'.'.join(map(str, path))} = {shown}: {type(error).__name__}: {str(error)[:120]}")
    assert not wrong, f"{len(wrong)} of {refused + taken + len(wrong)}\n" + "\n".join(wrong)
    assert taken and refused > 200, (taken, refused)
