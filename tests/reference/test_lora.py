"""minift.methods.lora against peft: outputs, gradients, starting values and merged weights, on texts, images and bare layers."""

import copy
import math
from functools import partial
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from twins import assert_merged_twins, assert_twins, bert, close, images, net, outputs, resnet, texts, trained, twins

from minift.methods.dora import dora
from minift.methods.lora import lora
from minift.methods.surgery import freeze, merge
from minift.pretrained import read

MINILM = Path(__file__).parents[2] / "weights" / "minilm-l6"

# sites here -> target_modules there; None: the default of each
LINEAR = "query/key/value/attention_output/feed_forward_hidden/feed_forward_output"
TEXTS = {
    "default": ("", None),
    "one role": ("attention_output", r"encoder\.layer\.\d\.attention\.output\.dense"),
    "every Linear": (rf"{LINEAR}/pooler\.dense", "all-linear"),
    "regex": (r"layers\.[02]\.feed_forward\.(hidden|output)", r"encoder\.layer\.[02]\.(intermediate|output)\.dense"),
    "words": ("word", ["word_embeddings"]),
    "words and Linear": ("word/query", ["word_embeddings", "query"]),
    "every Embedding": (r"embeddings\.(word|token_type|position)", r"embeddings\.\w+_embeddings"),
}
IMAGES = {
    "default": ("", r".*\.layer\.1\.convolution"),
    "every Conv2d": (r"stem\.conv/conv1/conv2/conv3/shortcut", ["convolution"]),
    "1x1 of stride 2": ("shortcut", [f"encoder.stages.{g}.layers.0.shortcut.convolution" for g in (0, 1)]),
}
BARE = {
    "Linear without bias": (nn.Linear(7, 5, bias=False), (4, 7)),
    "Linear on one vector": (nn.Linear(7, 5), (7,)),
    "oblong": (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2)), (2, 4, 9, 11)),
    "same": (nn.Conv2d(4, 6, 3, padding="same", bias=False), (2, 4, 5, 6)),
    "one image without a batch": (nn.Conv2d(4, 6, 3), (4, 5, 6)),
}


def config(target, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, rslora: bool = False) -> peft.LoraConfig:
    """peft's, with minift's defaults."""
    return peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, use_rslora=rslora, target_modules=target)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("sites", TEXTS)
def test_texts(sites, train):
    ours, there = TEXTS[sites]
    options = {"dropout": 0.4}
    body, theirs = twins(bert(), partial(lora, sites=ours, **options), config(there, **options))
    assert_twins(body, theirs, texts(), train)
    assert_merged_twins(body, theirs, texts())


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("sites", IMAGES)
def test_images(sites, train):
    ours, there = IMAGES[sites]
    options = {"rank": 3, "alpha": 5.0, "dropout": 0.2}
    body, theirs = twins(resnet(), partial(lora, sites=ours, **options), config(there, **options))
    statistics = {name: buffer.clone() for name, buffer in body.named_buffers()}
    assert_twins(body, theirs, images(), train)
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in body.named_buffers())
    assert_merged_twins(body, theirs, images())


@pytest.mark.parametrize("layer", BARE)
def test_bare_layers(layer):
    layer, shape = BARE[layer]
    given = (torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),)
    body, theirs = twins(net(layer), partial(lora, sites="0", rank=3, dropout=0.3), config(["0"], rank=3, dropout=0.3))
    assert_twins(body, theirs, given, train=True)
    assert_merged_twins(body, theirs, given)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(("rank", "alpha"), [(1, 1.0), (2, 16.0), (4, 2.5), (20, 16.0)])
@pytest.mark.parametrize("dropout", [0.0, 0.9])
def test_options(rank, alpha, dropout, rslora):
    options = {"rank": rank, "alpha": alpha, "dropout": dropout, "rslora": rslora}
    body, theirs = twins(bert(), partial(lora, **options), config(None, **options))
    assert_twins(body, theirs, texts(), train=True)
    assert_merged_twins(body, theirs, texts())


def test_beside_dropouts_of_the_model():
    """Where every stage trains, the model's own dropouts are on as in peft's: the same numbers are drawn in the same order."""
    body, theirs = twins(
        bert(dropout=0.3), partial(lora, sites="word/query", dropout=0.4), config(TEXTS["words and Linear"][1], dropout=0.4)
    )
    assert_twins(body, theirs, texts(), train=True)


LAYERS = {
    "Linear": nn.Linear(40, 30),
    "1x1": nn.Conv2d(40, 20, 1),
    "3x3": nn.Conv2d(10, 20, 3),
    "oblong": nn.Conv2d(10, 20, (1, 7)),
    "Embedding": nn.Embedding(50, 20),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_starts_with_pefts_values(layer):
    """The same draws with the same seed, once both have their layers."""
    layer = LAYERS[layer].double()
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(layer)), config(["0"]))
    torch.manual_seed(5)
    theirs.base_model.model[0].reset_lora_parameters("default", True)
    body = net(layer)
    freeze(body)
    torch.manual_seed(5)
    lora(body, sites="0")
    for name, (ours, other) in trained(body, theirs).items():
        close(ours, other, name)
    A, B = (body[0].B, body[0].A) if isinstance(layer, nn.Embedding) else (body[0].A, body[0].B)
    assert A.any() and not B.any()
    if not isinstance(layer, nn.Embedding):
        assert 0.98 < A.abs().max() * layer.weight[0].numel() ** 0.5 <= 1


@pytest.mark.parametrize(("base", "given", "sites"), [(bert, texts, f"word/{LINEAR}"), (resnet, images, "conv1/conv2/conv3")])
def test_starts_as_pretrained(base, given, sites):
    body, plain = base().eval(), base().eval()
    freeze(body)
    lora(body, sites=sites)
    for y, was in zip(outputs(body, given()), outputs(plain, given()), strict=True):
        assert torch.equal(y, was)


def test_dilation():
    """peft leaves it out of A's convolution, and so fails; here the merged layer is the reference."""
    body = net(nn.Conv2d(4, 6, 3, dilation=2, padding=1))
    freeze(body)
    lora(body, sites="0", rank=3)
    nn.init.normal_(body[0].B)
    wrapped = outputs(body, images(4))
    plain = outputs(net(nn.Conv2d(4, 6, 3, dilation=2, padding=1)), images(4))
    assert wrapped[0].shape == plain[0].shape
    merge(body)
    assert type(body[0]) is nn.Conv2d
    close(outputs(body, images(4))[0], wrapped[0], "merged")


REFUSED = {
    "groups": (net(nn.Conv2d(4, 6, 3, groups=2)), "0", "groups=2"),
    "padding of another kind": (net(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")), "0", "padding_mode=reflect"),
    "LayerNorm": (bert(), "attention_norm", "LayerNorm"),
    "a whole branch": (bert(), "feed_forward_branch", "FeedForward"),
    "a misspelt role": (bert(), "query/valeu", "sites=valeu: .* did you mean value"),
    "a misspelt name": (bert(), r"layers\.0\.attention\.querry", "did you mean layers.0.attention.query"),
    "one that matches nothing": (bert(), "decoder", "known roles are word, "),
    "no regular expression": (bert(), "query(", "no regular expression"),
    "a pattern that matches a part": (bert(), "attention", "no module has such a name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_sites(case):
    body, sites, said = REFUSED[case]
    with pytest.raises(ValueError, match=said) as refused:
        lora(body, sites=sites)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("method", [lora, dora])
@pytest.mark.parametrize(
    "options",
    [
        {"rank": 0},
        {"alpha": 0.0},
        {"alpha": -1.0},
        {"alpha": math.nan},
        {"alpha": math.inf},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"dropout": 2.0},
    ],
    ids=str,
)
def test_refused_options(method, options):
    ((name, _),) = options.items()
    with pytest.raises(ValueError, match=f"{name}=.*: rank is 1 to 65,536") as refused:
        method(bert(), **options)
    assert "\n" not in str(refused.value)


def test_twice_at_one_site_is_refused():
    body = bert()
    lora(body)
    with pytest.raises(ValueError, match=r"layers\.0\.attention\.query: LoRA is there already") as refused:
        lora(body, sites="query")
    assert "\n" not in str(refused.value)


def test_real_weights_in_float32():
    checkpoint = read(MINILM)
    body, theirs = twins(checkpoint.body(), lora, config(None))
    checkpoint.tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    encoded = checkpoint.tokenizer.encode_batch(["A quiet, unhurried film; it stayed with me for days.", "Never again!"])
    tokens, mask = (torch.tensor([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask"))
    types = torch.zeros_like(tokens)
    with torch.inference_mode():
        hidden, pooled = outputs(body.eval(), (tokens, mask.bool(), types))
        expected_hidden, expected_pooled = outputs(theirs.eval(), (tokens, mask, types))
        close(hidden[mask.bool()], expected_hidden[mask.bool()], "hidden", atol=1e-5)
        close(pooled, expected_pooled, "pooled", atol=1e-5)
        assert (pooled - checkpoint.body().eval()(tokens, mask.bool()).pooled).abs().max() > 0.1
