"""torchvision's files in and out, against torchvision itself; downloads for real, from an HTTP server on loopback."""

import hashlib
import json
import re
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from tiny import converted_directory, randomise_norms, trust_our_own_files
from torch import nn
from torchvision.models import ResNet50_Weights
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

import convert
from minift.data.loading import IMAGENET_V1, IMAGENET_V2
from minift.errors import UserError
from minift.formats.huggingface import translate
from minift.formats.torchvision import WEIGHTS, library, preprocessing_of, published
from minift.models.resnet import ResNet as Body
from minift.models.resnet import ResNetConfig
from minift.pretrained import Checkpoint, read, write

NARROW = ResNetConfig(depths=(2, 1), embedding_size=8, hidden_sizes=(8, 16))  # no library builds it, so it is only read


@pytest.fixture(autouse=True)
def own_files(monkeypatch):
    trust_our_own_files(monkeypatch)


def narrow_tensors(head: bool = True) -> dict[str, torch.Tensor]:
    """A small state dict in torchvision's names."""
    torch.manual_seed(0)
    body = Body(NARROW)
    table = translate(body, body.TORCHVISION)
    tensors = {table[name]: torch.randn(t.shape) if t.is_floating_point() else t + 5 for name, t in body.state_dict().items()}
    return tensors | ({"fc.weight": torch.randn(3, 16), "fc.bias": torch.randn(3)} if head else {})


@pytest.fixture(scope="module")
def network() -> ResNet:
    """torchvision's own class, shallow, every norm and statistic random."""
    torch.manual_seed(0)
    network = ResNet(Bottleneck, [1, 2, 1, 1], num_classes=3)
    randomise_norms(network, std=0.2, batches=9)
    return network.eval()


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name


def bring_in(path: Path, out: Path, *flags: str) -> Checkpoint:
    assert not convert.main([str(path), "--out", str(out), *flags])
    return read(out)


# ---- what is read ----


def test_a_file_of_torchvision_is_read_and_checked_block_by_block(tmp_path, network, capsys):
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    checkpoint = bring_in(tmp_path / "mine.pth", tmp_path / "ours", "--check")
    printed = capsys.readouterr().out
    assert "dropped  fc.bias, fc.weight" in printed and "blocks.4" in printed
    assert checkpoint.config == {
        "depths": [1, 2, 1, 1], "embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "num_channels": 3,
    }  # fmt: skip
    assert f"{sum(p.numel() for n, p in network.named_parameters() if 'fc' not in n):,} parameters" in printed
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    features = []
    hook = network.avgpool.register_forward_hook(lambda module, inputs, output: features.append(output.flatten(1)))
    with torch.inference_mode(), hook:
        network(images)
        torch.testing.assert_close(checkpoint.body("mean").eval()(images).pooled, features[0], rtol=1e-5, atol=1e-5)


def wrapped(tensors):
    return {"state_dict": {f"module.{name}": t for name, t in tensors.items()}, "epoch": 3, "optimizer": {"state": {}}}


def without_counters(tensors):
    return {name: t for name, t in tensors.items() if "num_batches" not in name}


FORMS = {  # what the file holds -> what is said of it
    "plain": (lambda t: t, []),
    "without a head": (lambda t: {n: v for n, v in t.items() if "fc" not in n}, ["dropped  nothing"]),
    "DataParallel": (lambda t: {f"module.{n}": v for n, v in t.items()}, ["module. before every name"]),
    "compiled, then DataParallel": (
        lambda t: {f"module._orig_mod.{n}": v for n, v in t.items()},
        ["module. before every name", "_orig_mod. before every name"],
    ),
    "a training checkpoint": (wrapped, ["state_dict of a training checkpoint taken, left out: epoch, optimizer", "module. "]),
    "torchvision's own training script": (
        lambda t: {"model": t, "args": None},
        ["model of a training checkpoint taken, left out: args"],
    ),
    "parameters": (lambda t: {n: nn.Parameter(v) if v.is_floating_point() else v for n, v in t.items()}, []),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_gives_the_same_body(tmp_path, form, capsys):
    shape, wanted = FORMS[form]
    tensors = narrow_tensors()
    torch.save(shape(tensors), tmp_path / "file.pth")
    torch.save(tensors, tmp_path / "plain.pth")
    expected = bring_in(tmp_path / "plain.pth", tmp_path / "expected")
    capsys.readouterr()
    checkpoint = bring_in(tmp_path / "file.pth", tmp_path / "ours")
    printed = capsys.readouterr().out
    assert all(text in printed for text in wanted), printed
    assert printed.count("note  ") == sum(text[0] != "d" for text in wanted) + 1  # of the preprocessing
    assert_equal(checkpoint.tensors, expected.tensors)


def test_an_old_file_counts_from_zero(tmp_path, capsys):
    tensors = narrow_tensors()
    torch.save(without_counters(tensors), tmp_path / "old.pth")
    checkpoint = bring_in(tmp_path / "old.pth", tmp_path / "ours")
    assert "11 num_batches_tracked are not in the file, set to 0" in capsys.readouterr().out
    counters = {name: t for name, t in checkpoint.tensors.items() if name.endswith("num_batches_tracked")}
    assert len(counters) == 11 and not any(t.any() for t in counters.values())
    torch.save(tensors, tmp_path / "new.pth")
    new = bring_in(tmp_path / "new.pth", tmp_path / "new").tensors
    assert all(t == 5 for name, t in new.items() if name in counters)
    assert_equal(without_counters(checkpoint.tensors), without_counters(new))


def test_safetensors_and_timm(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, (1, 2, 1, 1), 3, channels=(4, 8, 8, 8)).eval()
    save_file(network.state_dict(), tmp_path / "timm.safetensors")
    body = bring_in(tmp_path / "timm.safetensors", tmp_path / "ours").body("mean").eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(body(images).hidden, network.forward_features(images), rtol=0, atol=1e-5)


def shapes_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict of these shapes that takes no room in the file."""
    return {name: torch.zeros(()).expand(t.shape) for name, t in network.state_dict().items()}


def meta(build) -> nn.Module:
    with torch.device("meta"):
        return build()


def save(content):
    return lambda path: torch.save(content() if callable(content) else content, path)


REFUSED = {
    "ResNet-18": (save(lambda: shapes_of(meta(lambda: ResNet(BasicBlock, [2, 2, 2, 2])))), "ResNet-18 and -34"),
    "wide": (
        save(lambda: shapes_of(meta(lambda: ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=128)))),
        "layer1.0.conv2.weight is (128, 128, 3, 3), a ResNet's is (64, 64, 3, 3); wide ResNets and ResNeXts",
    ),
    "ResNeXt": (
        save(lambda: shapes_of(meta(lambda: ResNet(Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4)))),
        "layer1.0.conv2.weight is (128, 4, 3, 3)",
    ),
    "another network": (
        save({"features.0.weight": torch.zeros(3, 3)}),
        "no ResNet in torchvision's names (it begins with features.0",
    ),
    "nothing": (save({}), "it begins with nothing"),
    "a tensor missing": (
        save(lambda: {n: t for n, t in narrow_tensors().items() if n != "layer1.1.bn2.running_var"}),
        "a ResNet with (2, 1) blocks of (8, 16) channels: 1 missing (first layer1.1.bn2.running_var)",
    ),
    "a tensor too many": (
        save(lambda: narrow_tensors() | {"layer1.0.se.weight": torch.zeros(1)}),
        "1 unexpected (first layer1.0.se",
    ),
    "no shortcut": (
        save(lambda: {n: t for n, t in narrow_tensors().items() if "downsample" not in n}),
        "5 missing (first layer2.0.downsample.0.weight)",
    ),
    "a resolution missing": (
        save(lambda: {n.replace("layer2", "layer3"): t for n, t in narrow_tensors().items()}),
        "layer2.0.conv2.weight is missing",
    ),
    "grey images": (
        save(lambda: narrow_tensors() | {"conv1.weight": torch.zeros(8, 1, 7, 7)}),
        "conv1.weight is (8, 1, 7, 7), a ResNet with",
    ),
    "a convolution that is none": (save(lambda: narrow_tensors() | {"layer1.0.conv3.weight": torch.zeros(8)}), "no convolution"),
    "a model object": (save(lambda: nn.Linear(1, 1)), "Python objects besides tensors"),
    "numbers": (save([1, 2]), "not a dictionary of tensors"),
    "text": (lambda path: path.write_text("<html>"), "not a file of torch.save"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_such_resnet_is_refused_in_one_line(tmp_path, case):
    make, wanted = REFUSED[case]
    path = tmp_path / "file.pth"
    make(path)
    with pytest.raises(UserError, match=re.escape(wanted)) as error:
        convert.main([str(path), "--out", str(tmp_path / "out")])
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_wrong_use(tmp_path):
    torch.save(narrow_tensors(), tmp_path / "file.pth")
    for arguments, wanted in (
        ([str(tmp_path / "file.pth"), "--revision", "main"], "is a file here"),
        (["resnet50", "--revision", "main"], "chosen by -v1 or -v2"),
        (["resnet50", "--preprocessing", "v1"], "belongs to a file"),
    ):
        with pytest.raises(UserError, match=wanted):
            convert.main([*arguments, "--out", str(tmp_path / "out")])
    for arguments, wanted in (
        (["--to", "torchvision"], "--to torchvision: say where with --out FILE.pth"),
        (
            ["--to", "torchvision", "--out", str(tmp_path / "new.pth"), "--preprocessing", "v1"],
            "--preprocessing: belongs to what is brought in",
        ),
        (["--to", "torchvision", "--out", str(tmp_path / "new.pth")], "no such directory"),
    ):
        with pytest.raises(UserError, match=wanted):
            convert.main([str(tmp_path / "file.pth"), *arguments])


# ---- preprocessing ----


def test_what_a_file_went_through(tmp_path, capsys, monkeypatch):
    torch.save(narrow_tensors(), tmp_path / "file.pth")
    checkpoint = bring_in(tmp_path / "file.pth", tmp_path / "assumed")
    assert "note     preprocessing assumed" in capsys.readouterr().out and checkpoint.preprocessing["resize"] == 256
    for version, expected in (("v1", IMAGENET_V1), ("v2", IMAGENET_V2)):
        checkpoint = bring_in(tmp_path / "file.pth", tmp_path / version, "--preprocessing", version)
        assert "assumed" not in capsys.readouterr().out
        assert checkpoint.preprocessing == json.loads(json.dumps(asdict(expected)))

    digest = hashlib.sha256((tmp_path / "file.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(ResNet50_Weights.IMAGENET1K_V2.value, "url", f"http://nowhere/resnet50-{digest[:8]}.pth")
    checkpoint = bring_in(tmp_path / "file.pth", tmp_path / "known")
    assert "the hash is that of torchvision's ResNet50_Weights.IMAGENET1K_V2" in capsys.readouterr().out
    assert checkpoint.preprocessing["resize"] == 232

    name = ResNet50_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    (tmp_path / name).write_bytes((tmp_path / "file.pth").read_bytes())
    with pytest.raises(UserError, match=rf"{name}: wrong hash: torchvision's file has 0676ba61\.\.\., this one {digest}"):
        convert.main([str(tmp_path / name), "--out", str(tmp_path / "wrong")])


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name.startswith("resnet")])
def test_published_weights_and_their_preprocessing(name):
    weights = library().get_weight(WEIGHTS[name])
    depth, _, version = name.partition("-")
    assert weights is torchvision.models.get_model_weights(depth)[f"IMAGENET1K_{version.upper() or 'V2'}"]
    assert preprocessing_of(weights) == (IMAGENET_V1 if version == "v1" else IMAGENET_V2)
    assert published()[weights.url.rpartition("/")[2]] is weights


def test_an_older_torch_reads_published_files_alone(tmp_path, monkeypatch):
    """By the eight digits of the hash that the names of torchvision's files bear, whatever this one is called."""
    torch.save(narrow_tensors(), tmp_path / "file.pth")
    monkeypatch.setattr("minift.formats.huggingface.SAFE", (2, 10))
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    with pytest.raises(UserError, match=r"file\.pth: refused, as torch 2\.9\.1 may run code.*take a \.safetensors file"):
        convert.main([str(tmp_path / "file.pth"), "--out", str(tmp_path / "out")])
    digest = hashlib.sha256((tmp_path / "file.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(ResNet50_Weights.IMAGENET1K_V2.value, "url", f"http://nowhere/resnet50-{digest[:8]}.pth")
    assert convert.main([str(tmp_path / "file.pth"), "--out", str(tmp_path / "out")]) is None


# ---- downloads ----


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append(self.path)
        if self.path.rpartition("/")[2] != server.name:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(server.content)))
        self.end_headers()
        self.wfile.write(server.content[: server.cut])


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves a small file under the name that its hash asks for, as torchvision's V2 weights of ResNet-50."""
    torch.save(narrow_tensors(), tmp_path / "served.pth")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.cut, server.requests = (tmp_path / "served.pth").read_bytes(), None, []
    server.name = f"resnet50-{hashlib.sha256(server.content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(ResNet50_Weights.IMAGENET1K_V2.value, "url", f"http://127.0.0.1:{server.server_port}/models/{server.name}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("MINIFT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def cached(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "torch").rglob("*") if path.is_file()]


def assert_refused(tmp_path: Path, *wanted: str, kept: tuple[str, ...] = ()):
    with pytest.raises(UserError) as error:
        convert.main(["resnet50"])
    message = str(error.value)
    assert "\n" not in message and all(text in message for text in wanted), message
    assert not (tmp_path / "weights").exists() and cached(tmp_path) == list(kept)


def test_download_then_from_the_cache(server, tmp_path, capsys):
    assert convert.main(["resnet50"]) is None
    checkpoint = read(tmp_path / "weights" / "resnet50")
    assert (checkpoint.source, checkpoint.revision, checkpoint.preprocessing["resize"]) == ("resnet50", server.name, 232)
    torch.save(narrow_tensors(), tmp_path / "same.pth")
    assert_equal(checkpoint.tensors, bring_in(tmp_path / "same.pth", tmp_path / "same").tensors)
    assert cached(tmp_path) == [server.name] and len(server.requests) == 1
    assert "assumed" not in capsys.readouterr().out.partition("same.pth")[0]
    bring_in("resnet50-v2", tmp_path / "again")
    assert len(server.requests) == 1


def test_a_download_that_breaks_off_leaves_nothing(server, tmp_path):
    server.cut = len(server.content) // 2
    assert_refused(tmp_path, "resnet50", server.name, "broke off", "nothing was kept, run the same command again")
    server.cut = None
    assert convert.main(["resnet50"]) is None


def test_a_wrong_hash_leaves_nothing(server, tmp_path):
    right = server.content
    server.content = right[:-1] + bytes([right[-1] ^ 1])
    promised = server.name[-12:-4]
    assert_refused(tmp_path, server.name, "came changed", promised, hashlib.sha256(server.content).hexdigest())
    server.content = right
    assert convert.main(["resnet50"]) is None


def test_a_cached_file_is_compared_with_its_hash(server, tmp_path):
    place = tmp_path / "torch" / "hub" / "checkpoints"
    place.mkdir(parents=True)
    (place / server.name).write_bytes(server.content[:-1])
    assert_refused(tmp_path, str(place / server.name), "wrong hash", "deleted from the cache, run the same command again")
    assert not server.requests
    assert convert.main(["resnet50"]) is None and len(server.requests) == 1


def test_what_the_server_does_not_have(server, tmp_path):
    server.name = "other.pth"
    assert_refused(tmp_path, "resnet50", "the server answers 404")


def test_a_server_that_cannot_be_reached(server, tmp_path):
    server.shutdown()
    server.server_close()
    assert_refused(tmp_path, "resnet50", server.name, "could not be reached", "refused")


def test_a_full_disk_and_a_cache_that_may_not_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "torch").write_text("a file where the cache should be")
    with pytest.raises(OSError) as error:  # which `errors.command` prints in one line, with the name
        convert.main(["resnet50"])
    assert error.value.filename and not (tmp_path / "weights").exists()
    if Path("/dev/full").is_char_device():
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "elsewhere"))
        real = open
        monkeypatch.setattr(
            "builtins.open", lambda name, *a, **k: real("/dev/full" if str(name).endswith(".partial") else name, *a, **k)
        )
        with pytest.raises(UserError, match=r"No space left on device.*nothing was kept"):
            convert.main(["resnet50"])


# ---- what is written ----


def run_of(network: ResNet, directory: Path) -> Path:
    """A run whose body and head are the network's."""
    torch.save(network.state_dict(), directory.with_suffix(".pth"))
    checkpoint = bring_in(directory.with_suffix(".pth"), directory.with_name(directory.name + "-body"), "--preprocessing", "v2")
    checkpoint.task = {"name": "image-classification", "labels": ["ant", "bee", "cat"], "pool": "mean"}
    checkpoint.head = {name: tensor.detach().clone() for name, tensor in network.fc.state_dict().items()}
    directory.mkdir()
    write(directory / "model", checkpoint)
    return directory


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_run_goes_back_bit_for_bit(tmp_path, network, suffix, capsys):
    run, out = run_of(network, tmp_path / "run"), tmp_path / f"back{suffix}"
    capsys.readouterr()
    assert convert.main([str(run), "--to", "torchvision", "--out", str(out), "--check"]) == 0
    printed = capsys.readouterr().out
    assert "blocks.4" in printed and "head" in printed
    tensors = load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)
    assert_equal(tensors, dict(network.state_dict()))
    call = re.search(r"model = (.*?); model\.load_state_dict\(", printed)[1]
    model = eval(call, {"torchvision": torchvision})
    model.load_state_dict(tensors, strict=True)
    assert json.loads(out.with_suffix(".json").read_text())["labels"] == ["ant", "bee", "cat"]

    again = bring_in(out, tmp_path / "again")
    first = read(run / "model")
    assert_equal(again.tensors, first.tensors)
    assert (again.config, again.preprocessing) == (first.config, first.preprocessing)


def test_a_body_is_written_without_a_head(tmp_path, network, capsys):
    run = run_of(network, tmp_path / "run")
    capsys.readouterr()
    assert convert.main([f"{run}-body", "--to", "torchvision", "--out", str(tmp_path / "out.pth"), "--check"]) == 0
    assert "there is no head in it: before load_state_dict, model.fc = torch.nn.Identity()" in capsys.readouterr().out
    model = ResNet(Bottleneck, [1, 2, 1, 1])
    model.fc = nn.Identity()
    model.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)


def test_torchvision_to_hugging_face_and_back(tmp_path, network):
    run = run_of(network, tmp_path / "run")
    convert.main([str(run), "--to", "hf", "--out", str(tmp_path / "hf")])
    first, again = read(run / "model"), bring_in(tmp_path / "hf", tmp_path / "again")
    assert_equal(again.tensors, first.tensors)
    assert (again.config, again.preprocessing) == (first.config, first.preprocessing)


def test_check_names_the_first_block_that_differs(tmp_path, network, capsys):
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    checkpoint = bring_in(tmp_path / "mine.pth", tmp_path / "ours")
    checkpoint.tensors["blocks.2.branch.norm3.running_mean"] += 1e-6
    write(tmp_path / "ours", checkpoint)
    capsys.readouterr()
    assert convert.check(read(tmp_path / "ours"), tmp_path / "mine.pth", None) == 1
    lines = capsys.readouterr().out.splitlines()[-7:]
    assert ["above" in line for line in lines] == [False, False, False, True, True, True, True], lines


def test_dtype_rounds_the_weights_and_leaves_the_counters(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    tensors = bring_in(tmp_path / "mine.pth", tmp_path / "ours", "--dtype", "float16", "--check").tensors
    assert {t.dtype for name, t in tensors.items() if "running" not in name} == {torch.float16, torch.int64}
    assert {t.dtype for name, t in tensors.items() if "running" in name} == {torch.float32}
    assert tensors["stem.norm.num_batches_tracked"] == 9


def test_a_value_beyond_the_range_of_float16_is_refused(tmp_path):
    tensors = narrow_tensors()
    tensors["layer1.0.bn1.running_var"][0] = 1e6  # a statistic stays as it is
    tensors["layer1.0.bn1.weight"][0] = 1e6
    torch.save(tensors, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"blocks.0.branch.norm1.weight holds 1e\+06.*take bfloat16"):
        convert.main([str(tmp_path / "file.pth"), "--out", str(tmp_path / "out"), "--dtype", "float16"])
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written(tmp_path):
    torch.save(narrow_tensors(), tmp_path / "file.pth")
    bring_in(tmp_path / "file.pth", tmp_path / "narrow")
    bert = converted_directory(tmp_path / "bert")
    for source, out, wanted in (
        (bert, "out.pth", "is a bert, which torchvision does not have"),
        (tmp_path / "narrow", "out.pth", "neither torchvision nor timm builds a stem of 8 and blocks of .8, 16. channels"),
        (tmp_path / "narrow", "out", "so --out ends in .pth, .pt, .safetensors"),
        (tmp_path / "narrow", "file.pth", "exists and is not empty"),
    ):
        with pytest.raises(UserError, match=wanted):
            convert.main([str(source), "--to", "torchvision", "--out", str(tmp_path / out)])
    assert not (tmp_path / "out.pth").exists()
    with pytest.raises(UserError, match="torchvision builds no ResNet of"):
        convert.main([str(tmp_path / "file.pth"), "--out", str(tmp_path / "checked"), "--check"])
