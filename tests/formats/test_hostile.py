"""Other people's files that were made to harm: one line, nothing read from elsewhere, no memory taken for what is not there."""

import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import converted_directory, huggingface_directory, tiny_body, write_json

import convert
from minift.errors import UserError
from minift.pretrained import check_values, read, read_tensors

CHECKOUT = Path(__file__).parents[2]


def refused(source: Path, out: Path, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        convert.main([str(source), "--out", str(out)])
    line = str(error.value)
    assert "\n" not in line and all(part in line for part in parts), line
    assert not out.exists()


# ---- elsewhere ----


@pytest.mark.parametrize(
    "shard",
    [
        "../outside/model.safetensors",
        "/outside/model.safetensors",
        "..",
        ".",
        "sub/x.safetensors",
        "..\\x",
        "C:x",
        "a\0b",
        "",
        3,
        None,
    ],
)
def test_an_index_names_files_beside_it_alone(tmp_path, shard):
    source = huggingface_directory(tmp_path / "source")
    (tmp_path / "outside").mkdir()
    (source / "model.safetensors").rename(tmp_path / "outside" / "model.safetensors")
    name = str(tmp_path) + shard if isinstance(shard, str) and shard.startswith("/") else shard
    names = load_file(tmp_path / "outside" / "model.safetensors")
    write_json(source / "model.safetensors.index.json", {"weight_map": dict.fromkeys(names, name)})
    refused(source, tmp_path / "out", "model.safetensors.index.json: ")


@pytest.mark.parametrize("index", [{}, {"weight_map": None}, {"weight_map": []}, {"weight_map": {}}, [], "x"])
def test_an_index_without_a_map(tmp_path, index):
    source = huggingface_directory(tmp_path / "source")
    (source / "model.safetensors").unlink()
    write_json(source / "model.safetensors.index.json", index)
    refused(source, tmp_path / "out", "model.safetensors.index.json: ")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"])
def test_a_link_out_of_the_directory(tmp_path, name):
    source = huggingface_directory(tmp_path / "source")
    (source / name).rename(tmp_path / "elsewhere")
    (source / name).symlink_to(tmp_path / "elsewhere")
    refused(source, tmp_path / "out", f"{source / name}: a symbolic link out of the directory, to {tmp_path / 'elsewhere'}")


def test_links_that_stay_inside_and_those_of_the_hub_s_cache(tmp_path):
    source = huggingface_directory(tmp_path / "source")
    (source / "model.safetensors").rename(source / "weights")
    (source / "model.safetensors").symlink_to("weights")
    (tmp_path / "link").symlink_to(source)
    assert convert.main([str(tmp_path / "link"), "--out", str(tmp_path / "one")]) is None
    (source / "model.safetensors").unlink()
    (source / "weights").rename(source / "model.safetensors")
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in source.iterdir():
        file.rename(blobs / f"{file.name}-blob")
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}-blob")
    assert convert.main([str(snapshot), "--out", str(tmp_path / "two")]) is None
    (tmp_path / "secret").write_text("[PAD]\n")
    (snapshot / "vocab.txt").unlink()
    (snapshot / "vocab.txt").symlink_to(tmp_path / "secret")
    refused(snapshot, tmp_path / "three", "vocab.txt: a symbolic link out of the directory")


# ---- headers ----


def with_header(path: Path, header: object, body: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "a tensor beyond the file": (({"a": entry([2**30], 0, 2**32)}, b"\0" * 8), {}),
    "a tensor whose size overflows": (({"a": entry([2**40, 2**40], 0, 8)}, b"\0" * 8), {}),
    "a shape that does not fit its bytes": (({"a": entry([2**20], 0, 8)}, b"\0" * 8), {}),
    "tensors that overlap": (({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12), {}),
    "two tensors in one place": (({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, b"\0" * 8), {}),
    "a hole between tensors": (({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12), {}),
    "an end before its start": (({"a": entry([1], 4, 0)}, b"\0" * 4), {}),
    "negative offsets": (({"a": entry([1], -4, 0)}, b"\0" * 4), {}),
    "negative sizes": (({"a": entry([-1], 0, 4)}, b"\0" * 4), {}),
    "bytes that are nobody's": (({"a": entry([1], 0, 4)}, b"\0" * 400), {}),
    "an unknown type": (({"a": entry([1], 0, 4, "F33")}, b"\0" * 4), {}),
    "a type of six bits": (({"a": entry([4], 0, 3, "F6_E2M3")}, b"\0" * 3), {}),
    "a type that is a number": (({"a": entry([1], 0, 4, 32)}, b"\0" * 4), {}),
    "metadata that are numbers": (({"__metadata__": {"format": 3}, "a": entry([1], 0, 4)}, b"\0" * 4), {}),
    "a header longer than the file": (({"a": entry([1], 0, 4)}, b"\0" * 4), {"length": 2**20}),
    "a header of 2^63 bytes": (({"a": entry([1], 0, 4)}, b"\0" * 4), {"length": 2**63}),
    "a header of 2^64 - 1 bytes": (({"a": entry([1], 0, 4)}, b"\0" * 4), {"length": 2**64 - 1}),
    "a header that is deep": ((b'{"a":' * 100_000 + b"1" + b"}" * 100_000,), {}),
    "a header that is a list": (([1],), {}),
    "a header that is not UTF-8": ((b'{"\xff": 1}',), {}),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_lies(tmp_path, case):
    source = huggingface_directory(tmp_path / "source")
    arguments, options = HEADERS[case]
    with_header(source / "model.safetensors", *arguments, **options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(source, tmp_path / "out", "model.safetensors: cut short or no safetensors file")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"hidden_size": 2**40, "num_attention_heads": 1},
        {"vocab_size": 2**62},
        {"max_position_embeddings": 10**30},
    ],
)
def test_sizes_beyond_any_model(tmp_path, changes):
    source = huggingface_directory(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    write_json(source / "config.json", config | changes)
    refused(source, tmp_path / "out", f"config.json: {next(iter(changes))} is ")


# ---- values ----


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_checkpoint_with_values_that_are_no_numbers(tmp_path, value, dtype):
    body = tiny_body()
    body.layers[1].attention.query.weight.data[3, 5] = value
    body.to(dtype)
    source = huggingface_directory(tmp_path / "source", body)
    refused(source, tmp_path / "out", "encoder.layer.1.attention.self.query.weight holds NaN or infinite values")
    directory = converted_directory(tmp_path / "converted", tiny_body().to(dtype))
    tensors = load_file(directory / "model.safetensors")
    tensors["layers.1.attention.query.weight"][3, 5] = value
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: layers\.1\.attention\.query\.weight holds NaN"):
        read(directory)


def test_a_head_that_is_dropped_may_hold_anything(tmp_path):
    extra = {"cls.bias": torch.full((2,), torch.nan), "cls.mask": torch.ones(2, dtype=torch.uint8)}
    source = huggingface_directory(tmp_path / "source", tiny_body(), "bert.", extra)
    assert convert.main([str(source), "--out", str(tmp_path / "out")]) is None


def test_values_of_every_type(tmp_path):
    fine = {
        "a": torch.tensor([3e38]),
        "half": torch.tensor([65504.0]).half(),
        "small": torch.tensor([1.0]).to(torch.float8_e4m3fn),
        "none": torch.zeros(0, 3),
        "norm.num_batches_tracked": torch.tensor(3),
    }
    save_file(fine, tmp_path / "fine.safetensors")
    assert read_tensors(tmp_path / "fine.safetensors").keys() == fine.keys()
    for name, dtype in (
        ("a", torch.complex64),
        ("norm.num_batches_tracked", torch.float32),
        ("norm.num_batches_tracked", torch.bool),
    ):
        with pytest.raises(UserError, match=f"{name} is stored as {str(dtype).removeprefix('torch.')}"):
            check_values(tmp_path, {name: torch.ones(1).to(dtype)})
    if hasattr(torch, "float4_e2m1fn_x2"):
        with pytest.raises(UserError, match="a is stored as float4_e2m1fn_x2, a floating-point type of 8 bits or more"):
            check_values(tmp_path, {"a": torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)})
    with pytest.raises(UserError, match="small holds NaN"):
        check_values(tmp_path, {"small": torch.tensor([torch.nan]).to(torch.float8_e4m3fn)})


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64])
def test_weights_of_another_type(tmp_path, dtype):
    name = "encoder.layer.0.output.dense.weight"
    source = huggingface_directory(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    save_file(tensors | {name: tensors[name].to(dtype)}, source / "model.safetensors")
    kind = str(dtype).removeprefix("torch.")
    refused(source, tmp_path / "out", f"{name} is stored as {kind}, a floating-point type")


# ---- .bin and .pth ----


def test_an_older_torch_reads_no_pickle(tmp_path, monkeypatch):
    source = huggingface_directory(tmp_path / "source")
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    for version in ("2.4.0", "2.6.0+cu124", "2.9.1", "1.13.1"):
        monkeypatch.setattr(torch, "__version__", version)
        refused(
            source, tmp_path / "out", f"pytorch_model.bin: refused, as torch {version} may run code", "install torch 2.10 or later"
        )
    for version in ("2.10.0", "2.11.0.dev20260101", "3.0.0"):
        monkeypatch.setattr(torch, "__version__", version)
        assert convert.main([str(source), "--out", str(tmp_path / version)]) is None


# ---- numbers ----


def test_the_pass_over_the_values_is_cheap(tmp_path):
    """No copy: the peak of memory grows by less than one of the tensors."""
    np.full((64 << 20,), 1, np.float32).tofile(tmp_path / "raw")
    with_header(tmp_path / "large.safetensors", {"a": entry([64 << 20], 0, 256 << 20)})
    with (tmp_path / "large.safetensors").open("ab") as file, (tmp_path / "raw").open("rb") as raw:
        file.write(raw.read())
    script = (
        "import resource, sys; from pathlib import Path; from minift.pretrained import check_values, read_tensors;"
        "path = Path(sys.argv[1]); tensors = read_tensors(path, checked=False); tensors['a'].sum();"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; check_values(path, tensors);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "large.safetensors")],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 64_000  # kilobytes, of 262,144
