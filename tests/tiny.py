"""Tiny random bodies, a BERT as a transformers checkpoint directory, rows and photographs; written without transformers."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from minift.formats.bytelevel import tokenizer_of_bytes
from minift.formats.huggingface import read, to_huggingface
from minift.models.bert import Bert, BertConfig
from minift.models.efficientnet import EfficientNet, EfficientNetConfig
from minift.models.gpt2 import Gpt2, Gpt2Config
from minift.models.resnet import ResNet, ResNetConfig
from minift.models.roberta import Roberta, RobertaConfig
from minift.pretrained import Checkpoint, write

WORDS = [
    *("the", "a", "was", "is", "not", "very", "good", "bad", "film", "food", "hotel", "app", "book", "never", "again", "always"),
    *("slow", "fast", "##ly", "##ing", "##s", ",", ".", "!", "?", "'", '"', "-", "é", "ü", "中"),
]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = list(dict.fromkeys([*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]))
CONFIG = BertConfig(
    vocab_size=len(VOCABULARY),
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=24,
    max_position_embeddings=40,
)
TEXTS = [
    "the film was very good",
    "a bad , slow book !",
    "the app is not good",
    "never a bad hotel .",
    "food was fast",
    "very slow food again",
]


def tiny_body(seed: int = 0, pool: str | None = "cls", **changes) -> Bert:
    """Every parameter random, biases and norms too: a swapped or forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    body = Bert(replace(CONFIG, **changes), pool)
    for parameter in body.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.data == 1)
    return body


def tiny_roberta(seed: int = 0, pool: str | None = "cls", **changes) -> Roberta:
    """The same of RoBERTa; rows of padding, which never train, stay 0."""
    generator = torch.Generator().manual_seed(seed)
    fields = asdict(CONFIG) | {"pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5} | changes
    body = Roberta(RobertaConfig(**fields), pool)
    for parameter in body.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.data == 1)
    for table in (body.embeddings.word, body.embeddings.position):
        table.weight.data[table.padding_idx] = 0.0
    return body


def tiny_gpt2(seed: int = 0, pool: str | None = "last", **changes) -> Gpt2:
    """The same of GPT-2."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"vocab_size": len(VOCABULARY), "n_positions": 40, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_inner": 24}
    body = Gpt2(Gpt2Config(**sizes | {"eos_token_id": 3} | changes), pool)
    for parameter in body.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.data == 1)
    return body


def byte_checkpoint(body: Gpt2 | None = None) -> Checkpoint:
    """A tiny GPT-2 over bytes."""
    body = body or tiny_gpt2(pool=None, vocab_size=257, n_positions=120, eos_token_id=256)
    tensors = {name: tensor.detach().clone() for name, tensor in body.state_dict().items()}
    return Checkpoint("gpt2", asdict(body.config), tensors, tokenizer_of_bytes(), "bytes")


def tiny_resnet(seed: int = 0, pool: str | None = "mean", **changes) -> ResNet:
    """Two resolutions of 2 and 1 blocks; every parameter and statistic random."""
    generator = torch.Generator().manual_seed(seed)
    body = ResNet(replace(ResNetConfig((2, 1), 8, (16, 24)), **changes), pool)
    for name, tensor in body.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator) * 0.2
            tensor.copy_(1 + noise.abs() if name.endswith(("norm.weight", "running_var")) or tensor.min() == 1 else noise)
    return body


def tiny_efficientnet(seed: int = 0, pool: str | None = "mean", **changes) -> EfficientNet:
    """Blocks without a first convolution, with another shape, and with a residual; every parameter and statistic random."""
    groups = {"kernel_sizes": (3, 5), "out_channels": (64, 96), "strides": (1, 2), "num_block_repeats": (1, 2)}
    torch.manual_seed(seed)
    body = EfficientNet(EfficientNetConfig(0.25, expand_ratios=(1, 2), **(groups | changes)), pool)
    for name, tensor in body.state_dict().items():
        if tensor.ndim == 1:
            noise = torch.randn(tensor.shape) * 0.2
            tensor.copy_(1 + noise.abs() if name.endswith("running_var") or tensor.min() == 1 else noise)
    return body


def randomise_norms(network: nn.Module, std: float, batches: int) -> None:
    """Every BatchNorm's weights and statistics random, so that a swapped or forgotten one shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=std)
            nn.init.normal_(module.running_mean, std=std)
            nn.init.uniform_(module.running_var, 0.5, 2)
            module.num_batches_tracked.fill_(batches)


def write_json(path: Path, content) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def huggingface_directory(
    directory: Path, body: Bert | None = None, prefix: str = "", extra: dict[str, Tensor] | None = None
) -> Path:
    """model.safetensors, config.json, vocab.txt and tokenizer_config.json, as an old checkpoint has them."""
    body = body or tiny_body()
    directory.mkdir(parents=True, exist_ok=True)
    tensors = to_huggingface({name: t.detach().clone() for name, t in body.state_dict().items()}, body, prefix)
    save_file(tensors | (extra or {}), directory / "model.safetensors", metadata={"format": "pt"})
    write_json(directory / "config.json", {"model_type": "bert", "architectures": ["BertModel"], **asdict(body.config)})
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY), encoding="utf-8")
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    return directory


def converted_directory(directory: Path, body: Bert | None = None, pool: str | None = None) -> Path:
    """The same, converted into minift's layout."""
    source = huggingface_directory(directory.with_name(directory.name + "-source"), body)
    if pool:
        (source / "1_Pooling").mkdir()
        modes = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
        write_json(source / "1_Pooling" / "config.json", {mode: name == pool for name, mode in modes.items()})
    checkpoint, _ = read(source, source.name, None)
    write(directory, checkpoint)
    return directory


def rows_file(path: Path, rows: int = 48) -> Path:
    """A CSV of texts that a tiny model can tell apart: `good` is positive, `bad` is negative."""
    lines = ["text,label"]
    for i in range(rows):
        word = ("good", "bad")[i % 2]
        lines.append(f"the {WORDS[8 + i % 5]} was {'very ' * (i % 4)}{word},{('positive', 'negative')[i % 2]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def converted_resnet(directory: Path, body: ResNet | EfficientNet | None = None) -> Path:
    """A tiny ResNet, or another body of images, in minift's layout, for images of 32 x 32."""
    body = body or tiny_resnet()
    preprocessing = {"resize": 36, "crop": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.2]}
    tensors = {name: tensor.detach().clone() for name, tensor in body.state_dict().items()}
    kind = type(body).__name__.lower()
    write(directory, Checkpoint(kind, asdict(body.config), tensors, None, directory.name, preprocessing=preprocessing))
    return directory


def photographs(directory: Path, each: int = 10, seed: int = 0, classes: tuple[str, ...] = ("ants", "bees")) -> Path:
    """directory/CLASS/NUMBER.jpg: the first class is reddish, the second bluish, the third greenish, all noisy."""
    random = np.random.default_rng(seed)
    for c, name in enumerate(classes):
        (directory / name).mkdir(parents=True)
        for i in range(each):
            size = (40 + 7 * (i % 3), 48 - 5 * (i % 2), 3)
            pixels = random.integers(0, 120, size)
            pixels[..., (0, 2, 1)[c]] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(directory / name / f"{i}.jpg", quality=95)
    return directory


def trust_our_own_files(monkeypatch) -> None:
    """The .bin and .pth files of tests are made by them, so a torch that is too old for files of others may read them too."""
    monkeypatch.setattr("minift.formats.huggingface.SAFE", (0, 0))
