"""Parameter groups against transformers' choice of what decays, timm's layer-wise learning rates and peft's of LoRA+."""

from dataclasses import asdict
from functools import partial

import pytest
import torch
import transformers
from tiny import CONFIG, tiny_body, tiny_resnet
from torch import nn
from twins import bert, resnet, trained, twins

from minift.formats.huggingface import names, translate
from minift.methods.lora import lora
from minift.methods.surgery import plain_name
from minift.optim.groups import make_groups

DECAY, LAYER_DECAY = 0.05, 0.7


class Model(nn.Module):
    def __init__(self, body: nn.Module, width: int = 4):
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, 3)


def test_what_decays_in_a_bert_as_in_transformers():
    reference = transformers.BertForSequenceClassification(transformers.BertConfig(**asdict(CONFIG)))
    body = tiny_body()
    table = {name: "bert." + theirs for name, theirs in names(body).items()}
    table |= {f"head.{leaf}": f"classifier.{leaf}" for leaf in ("weight", "bias")}
    compare_with_trainer(Model(body), reference, table)


def test_what_decays_in_a_resnet_as_in_transformers():
    body = tiny_resnet()
    c = body.config
    config = transformers.ResNetConfig(embedding_size=c.embedding_size, hidden_sizes=c.hidden_sizes, depths=c.depths)
    table = {name: "resnet." + theirs for name, theirs in names(body).items()}
    table |= {f"head.{leaf}": f"classifier.1.{leaf}" for leaf in ("weight", "bias")}
    decayed = compare_with_trainer(Model(body), transformers.ResNetForImageClassification(config), table)
    assert "stem.norm.weight" in decayed
    by_type = {name for group in make_groups(Model(body), 1.0, DECAY) if group.weight_decay for name in group.names}
    assert not any("norm" in name for name in by_type) and by_type < decayed


def test_what_decays_in_odd_modules_as_in_transformers():
    body = nn.Module()
    body.layer = nn.Module()
    body.layer.relative_Bias = nn.Embedding(4, 4)  # decays by type
    body.layer.groups = nn.GroupNorm(2, 4)  # decays in the Trainer
    body.layer.final = nn.LayerNorm(4)  # known by its type
    body.layer.norm = nn.RMSNorm(4)
    body.layer.scale = nn.Parameter(torch.ones(4))
    body.stages = {"layer": ("layer",)}
    table = {name: f"body.{name}" for name, _ in body.named_parameters()} | {f"head.{x}": f"head.{x}" for x in ("weight", "bias")}
    model = Model(body)
    decayed = compare_with_trainer(model, model, table)
    assert decayed == {"layer.groups.weight", "layer.scale", "head.weight"}


def compare_with_trainer(model: nn.Module, reference: nn.Module, table: dict[str, str]) -> set[str]:
    groups = make_groups(model, 1.0, DECAY, decay_rule="hf")
    assert {table[name] for group in groups for name in group.names} == {name for name, _ in reference.named_parameters()}
    decayed = {name for group in groups if group.weight_decay for name in group.names}
    assert {table[name] for name in decayed} == set(transformers.Trainer.get_decay_parameter_names(None, reference))
    return decayed


def test_an_unknown_rule_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'huggingface'.*type, hf"):
        make_groups(Model(tiny_body()), 1.0, DECAY, decay_rule="huggingface")


def rates_and_decay_by_timm(model: nn.Module) -> dict[str, tuple[float, float]]:
    from timm.optim import param_groups_layer_decay

    known = {id(p): name for name, p in model.named_parameters()}
    groups = param_groups_layer_decay(model, weight_decay=DECAY, layer_decay=LAYER_DECAY)
    return {known[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}


def compare_with_timm(model: nn.Module, theirs: dict[str, tuple[float, float]], table: dict[str, str]) -> None:
    groups = make_groups(model, 1.0, DECAY, layer_decay=LAYER_DECAY)
    ours = {table[name]: (g.lr, g.weight_decay) for g in groups for name in g.names}
    assert ours.keys() == theirs.keys()
    assert {name: decay for name, (_, decay) in ours.items()} == {name: decay for name, (_, decay) in theirs.items()}
    assert {name: rate for name, (rate, _) in ours.items()} == pytest.approx({name: rate for name, (rate, _) in theirs.items()})
    assert len({rate for rate, _ in theirs.values()}) == 1 + len(model.body.stages)


def test_layer_decay_of_a_resnet_as_in_timm():
    resnet = pytest.importorskip("timm").models.resnet
    body = tiny_resnet(embedding_size=64)  # timm's stem has no other width
    c = body.config
    reference = resnet.ResNet(resnet.Bottleneck, c.depths, num_classes=3, channels=[width // 4 for width in c.hidden_sizes])
    table = translate(body, body.TORCHVISION) | {f"head.{leaf}": f"fc.{leaf}" for leaf in ("weight", "bias")}
    compare_with_timm(Model(body), rates_and_decay_by_timm(reference), table)


def test_layer_decay_of_a_vision_transformer_as_in_timm():
    """timm's own modules in a body's frame: without tokens and positions, which lie there outside all modules."""
    kind = pytest.importorskip("timm").models.vision_transformer.VisionTransformer
    bare = {"class_token": False, "pos_embed": "none", "global_pool": "avg", "fc_norm": False}
    body = kind(img_size=8, patch_size=4, embed_dim=8, depth=4, num_heads=2, num_classes=3, **bare)
    theirs = rates_and_decay_by_timm(body)
    model = Model(body)
    model.head, body.head = body.head, nn.Identity()
    body.stages = {"embeddings": ("patch_embed",)} | {f"layer {i}": (f"blocks.{i}",) for i in range(4)}
    body.stages["layer 3"] += ("norm",)
    compare_with_timm(model, theirs, {name: name for name in theirs})


def test_layer_decay_of_a_bert_as_in_timm():
    """timm has no BERT: its rule reads the order of the layers from `group_matcher`, as it does on its own models."""
    pytest.importorskip("timm")
    body = tiny_body()
    model = Model(body)
    layers = [(r"^body\.layers\.(\d+)", None), (r"^body\.pooler", (99999,))]  # 99999: with the group before it
    model.group_matcher = lambda coarse: {"stem": r"^body\.embeddings", "layers": layers}
    table = {name: f"body.{name}" for name, _ in body.named_parameters()} | {f"head.{x}": f"head.{x}" for x in ("weight", "bias")}
    compare_with_timm(model, rates_and_decay_by_timm(model), table)


@pytest.mark.parametrize("sites", [("query/value", ["query", "value"]), ("conv2", ["layer.1.convolution"])])
def test_learning_rates_of_lora_plus_as_in_peft(sites):
    """All that trains is A and B: who gets which learning rate and weight decay."""
    peft, create = pytest.importorskip("peft"), pytest.importorskip("peft.optimizers").create_loraplus_optimizer
    ours, there = sites
    config = peft.LoraConfig(target_modules=rf".*\.{there[0]}" if len(there) == 1 else there)
    body, theirs = twins(bert() if "query" in ours else resnet(), partial(lora, sites=ours), config)
    optimizer = create(theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0, loraplus_weight_decay=DECAY)
    expected = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    model = Model(body).double()
    model.head.requires_grad_(False)
    groups = make_groups(model, 1e-3, DECAY, lr_factors={"B": 16.0}, plain_name=plain_name)
    found = {name: (group.lr, group.weight_decay) for group in groups for name in group.names}
    pairs = trained(body, theirs)
    assert found == {name: expected[id(other)] for name, (_, other) in pairs.items()}
    assert {lr for lr, _ in found.values()} == {1e-3, 16e-3}
