"""Downloads, for real: convert.py in a process of its own against an HTTP server on loopback that speaks the hub's protocol."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import VOCABULARY, huggingface_directory, tiny_body, write_json

from minift.formats.huggingface import to_huggingface
from minift.models.resnet import ResNet, ResNetConfig
from minift.pretrained import read

CHECKOUT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
COMMIT = "c0ffee" * 6 + "c0ff"


class Hub(ThreadingHTTPServer):
    """Serves a directory as the repository owner/tiny."""

    forks: subprocess.Popen  # what runs convert.py against it

    def __init__(self, directory: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.directory = directory
        self.cut: dict[str, int] = {}  # file -> bytes after which the connection breaks, each time
        self.spoilt: set[str] = set()  # files that arrive with one byte changed
        self.requests: list[tuple[str, str, str | None, str | None]] = []  # method, file, Range, Authorization


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        hub: Hub = self.server
        parts = self.path.partition("?")[0].strip("/").split("/")
        name = "/".join(parts[4:])
        hub.requests.append((self.command, name, self.headers["Range"], self.headers["Authorization"]))
        path = hub.directory / name
        if parts[:2] != ["owner", "tiny"]:
            return self.refuse("RepoNotFound")
        if parts[2] != "resolve" or not path.is_file():
            return self.refuse("EntryNotFound")
        content = path.read_bytes()
        large = path.suffix in (".safetensors", ".bin")
        digest = hashlib.sha256(content) if large else hashlib.sha1(b"blob %d\0" % len(content) + content)
        if name in hub.spoilt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        first = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0]) if body and self.headers["Range"] else 0
        self.send_response(206 if first else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{digest.hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body and name in hub.cut and hub.cut[name] < len(content) - first:
            self.wfile.write(content[first : first + hub.cut[name]])
            self.wfile.flush()
            self.close_connection = True
        elif body:
            self.wfile.write(content[first:])

    def refuse(self, code: str):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        if code == "EntryNotFound":
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hub(tmp_path):
    server = Hub(huggingface_directory(tmp_path / "repository"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


# Imports torch once; then, for each line on its input, a process of its own runs convert.py as a command does. It imports
# huggingface_hub, which reads the environment at that moment. What the library waits between its attempts is not slept.
FORKS = """
import json, os, sys, time
import torch, minift.formats.hub
import convert
from minift.errors import command

assert "huggingface_hub" not in sys.modules
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        os.environ.clear()
        os.environ.update(request["environment"])
        for stream, path in ((1, request["stdout"]), (2, request["stderr"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        sys.argv, code = ["convert.py", *request["arguments"]], 1
        time.sleep = lambda seconds: None
        try:
            command(convert.main, "convert")
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def forks():
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", FORKS], env=environment, **streams) as process:
        Hub.forks = process
        yield
        process.stdin.close()


def convert(hub: Hub, out: Path, source: str = "owner/tiny", **environment: str) -> subprocess.CompletedProcess:
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(out.parent / "cache"),
        "NO_PROXY": "127.0.0.1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    files = {stream: out.with_name(f"{out.name}.{stream}") for stream in ("stdout", "stderr")}
    for file in files.values():
        file.unlink(missing_ok=True)
    request = {"environment": kept | settings | environment, "arguments": [source, "--out", str(out)]}
    hub.forks.stdin.write(json.dumps(request | {stream: str(file) for stream, file in files.items()}) + "\n")
    hub.forks.stdin.flush()
    code = int(hub.forks.stdout.readline())
    return subprocess.CompletedProcess(source, code, *(file.read_text() for file in files.values()))


def assert_one_line(result: subprocess.CompletedProcess, *wanted: str):
    lines = [line for line in result.stderr.splitlines() if line.startswith("convert:")]
    assert result.returncode == 2 and len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    for text in wanted:
        assert text in lines[0]


def assert_converted(out: Path, hub: Hub):
    expected = load_file(hub.directory / "model.safetensors")
    checkpoint = read(out)
    assert torch.equal(checkpoint.tensors["embeddings.word.weight"], expected["embeddings.word_embeddings.weight"])
    assert (checkpoint.source, checkpoint.revision) == ("owner/tiny", COMMIT)


def test_download_then_offline(hub, tmp_path):
    result = convert(hub, tmp_path / "first", HF_TOKEN="hf_secret")
    assert result.returncode == 0, result.stderr
    assert_converted(tmp_path / "first", hub)
    assert {authorization for _, name, _, authorization in hub.requests if name} == {"Bearer hf_secret"}
    asked = len(hub.requests)
    result = convert(hub, tmp_path / "second", HF_HUB_OFFLINE="1")
    assert result.returncode == 0, result.stderr
    assert_converted(tmp_path / "second", hub)
    assert len(hub.requests) == asked


def test_an_interrupted_download_is_resumed(hub, tmp_path):
    chunk = 10 << 20  # huggingface_hub writes by this much; what comes after the last whole chunk is lost
    huggingface_directory(hub.directory, tiny_body(vocab_size=6 * chunk // 16 // 4))
    hub.cut["model.safetensors"] = 5 * chunk // 2
    result = convert(hub, tmp_path / "out")
    if result.returncode != 0:  # huggingface_hub may resume by itself; where it gives up, the same command goes on
        assert_one_line(result, "owner/tiny/model.safetensors", "run the same command again")
        assert not (tmp_path / "out").exists()
        hub.cut.clear()
        result = convert(hub, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert_converted(tmp_path / "out", hub)
    ranges = [r for method, name, r, _ in hub.requests if method == "GET" and name == "model.safetensors"]
    assert ranges[0] is None and any(r and int(r[6:].split("-")[0]) >= chunk for r in ranges), ranges


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt"])
def test_a_wrong_hash_is_named_and_not_kept(hub, tmp_path, name):
    hub.spoilt.add(name)
    assert_one_line(convert(hub, tmp_path / "out"), f"owner/tiny/{name}", "wrong hash", "run the same command again")
    assert not (tmp_path / "out").exists()
    hub.spoilt.clear()
    result = convert(hub, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert_converted(tmp_path / "out", hub)


def test_shards(hub, tmp_path):
    tensors = load_file(hub.directory / "model.safetensors")
    parts = {f"model-0000{i + 1}-of-00002.safetensors": dict(list(tensors.items())[i::2]) for i in range(2)}
    for name, part in parts.items():
        save_file(part, hub.directory / name, metadata={"format": "pt"})
    write_json(
        hub.directory / "model.safetensors.index.json",
        {"weight_map": {key: name for name, part in parts.items() for key in part}},
    )
    (hub.directory / "model.safetensors").rename(tmp_path / "whole.safetensors")
    result = convert(hub, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert read(tmp_path / "out").tensors.keys() and result.stdout.startswith("read")
    (hub.directory / "model-00002-of-00002.safetensors").unlink()
    assert_one_line(convert(hub, tmp_path / "again", HF_HOME=str(tmp_path / "other")), "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("gone", "wanted"),
    [("config.json", "no config.json"), ("model.safetensors", "none of model.safetensors"), ("vocab.txt", "no vocab.txt")],
)
def test_a_missing_file_is_named(hub, tmp_path, gone, wanted):
    (hub.directory / gone).unlink()
    assert_one_line(convert(hub, tmp_path / "out"), wanted)
    assert not (tmp_path / "out").exists()


def test_what_is_not_there(hub, tmp_path):
    assert_one_line(convert(hub, tmp_path / "out", "owner/other"), "owner/other", "no repository on the hub")
    assert_one_line(convert(hub, tmp_path / "out", "not//an id"), "no hub id")
    assert_one_line(convert(hub, tmp_path / "out", HF_HUB_OFFLINE="1"), "not in the cache", "HF_HUB_OFFLINE")
    assert convert(hub, tmp_path / "first").returncode == 0
    for link in (tmp_path / "cache").rglob("tokenizer_config.json"):
        link.unlink()
    assert_one_line(convert(hub, tmp_path / "out", HF_HUB_OFFLINE="1"), "tokenizer_config.json: not in the cache")
    hub.shutdown()
    hub.server_close()
    result = convert(hub, tmp_path / "out", HF_HOME=str(tmp_path / "empty"))
    assert_one_line(result, "could not be reached", "run the same command again")
    assert "thrown while requesting" not in result.stderr and "Retrying in" in result.stderr


def test_a_repository_of_images_needs_no_tokenizer(hub, tmp_path):
    body = ResNet(ResNetConfig(depths=(1,), embedding_size=8, hidden_sizes=(16,)))
    for file in hub.directory.iterdir():
        file.unlink()
    save_file(to_huggingface(body.state_dict(), body, "resnet."), hub.directory / "model.safetensors")
    write_json(hub.directory / "config.json", {"model_type": "resnet", **asdict(body.config)})
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 77}, "crop_size": 66, "resample": 3}
    colours = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    write_json(hub.directory / "preprocessor_config.json", processor | colours | {"do_center_crop": True})
    result = convert(hub, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    checkpoint = read(tmp_path / "out")
    assert torch.equal(checkpoint.tensors["stem.conv.weight"], body.stem.conv.weight)
    assert (checkpoint.preprocessing["resize"], checkpoint.preprocessing["crop"]) == (77, 66)
    assert not {"tokenizer.json", "vocab.txt"} & {name for _, name, _, _ in hub.requests}
    asked = len(hub.requests)
    assert convert(hub, tmp_path / "offline", HF_HUB_OFFLINE="1").returncode == 0 and len(hub.requests) == asked


def test_a_gpt2_is_downloaded_with_its_tokenizer(hub, tmp_path):
    for file in hub.directory.iterdir():
        file.unlink()
    hub.directory.rmdir()
    pytest.importorskip("transformers")
    from reference.test_bytelevel import checkpoint_directory

    checkpoint_directory(hub.directory, "gpt2")
    result = convert(hub, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    checkpoint, theirs = read(tmp_path / "out"), load_file(hub.directory / "model.safetensors")
    assert (checkpoint.source, checkpoint.revision) == ("owner/tiny", COMMIT)
    assert torch.equal(checkpoint.tensors["embeddings.word.weight"], theirs["wte.weight"])
    assert torch.equal(checkpoint.tensors["layers.1.attention.qkv.weight"], theirs["h.1.attn.c_attn.weight"].T)
    assert {"vocab.json", "merges.txt"} <= {name for _, name, _, _ in hub.requests}


def test_another_architecture_is_refused_before_its_weights_are_fetched(hub, tmp_path):
    write_json(hub.directory / "config.json", {"model_type": "t5"})
    assert_one_line(convert(hub, tmp_path / "out"), "model_type is 't5'")
    assert not any(name == "model.safetensors" for _, name, _, _ in hub.requests)


@pytest.mark.parametrize("shard", ["../../outside.safetensors", "/outside.safetensors", "sub/outside.safetensors"])
def test_an_index_that_leads_elsewhere_is_refused_before_anything_is_fetched(hub, tmp_path, shard):
    (hub.directory / "model.safetensors").unlink()
    write_json(hub.directory / "model.safetensors.index.json", {"weight_map": {"a": shard}})
    assert_one_line(convert(hub, tmp_path / "out"), "model.safetensors.index.json: names the file", "lie beside its index")
    assert not any("outside" in name for _, name, _, _ in hub.requests)


def test_added_tokens_are_fetched(hub, tmp_path):
    write_json(hub.directory / "added_tokens.json", {"covid": len(VOCABULARY)})
    huggingface_directory(hub.directory, tiny_body(vocab_size=len(VOCABULARY) + 1))
    result = convert(hub, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert read(tmp_path / "out").tokenizer.encode("covid").ids[1] == len(VOCABULARY)
