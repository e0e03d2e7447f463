"""minift.optim.precision against torch.autocast and torch.amp.GradScaler. What `--precision auto` measures: test_measure.py."""

import contextlib
import copy
import gc
import re
import weakref
from functools import partial
from random import Random

import pytest
import torch
import torch.nn.functional as F
from reference.test_bert import twin
from tiny import CONFIG, tiny_body, tiny_gpt2
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import Bottleneck, ResNet
from twins import inputs

from minift.formats.huggingface import names
from minift.models.bert import Bert
from minift.models.gpt2 import Gpt2, Gpt2Config
from minift.optim.adamw import AdamW
from minift.optim.groups import Group
from minift.optim.precision import POLICIES, TABLE, Float32, LossScaler, LowPrecision, autocast, float32_products

SPACES = {"torch": torch, "F": F, "linalg": torch.linalg, "special": torch.special, "Tensor": torch.Tensor}


def on_cuda(test):
    return pytest.mark.cuda(pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")(test))


def reduction(f) -> dict:
    """torch's builtin losses count their reductions, those of torch.nn.functional name them."""
    return {"reduction": "mean"} if f.__module__ == "torch.nn.functional" else {"reduction": 1}


def pair(f, t, *shape):
    return f(t(*shape), t(*shape))


def labels(t, *values):
    return torch.tensor(values, device=t.device)


def attention(f, t):
    mask = torch.arange(4, device=t.device) < 3
    return f(t(2, 3, 4, 8), t(2, 3, 4, 8), t(2, 3, 4, 8), mask.expand(2, 1, 4, 4))


# Operation -> how to call it: f the function, t(*shape) a tensor of numbers between 0.1 and 0.9.
CALLS = {
    "linear": lambda f, t: f(t(3, 4), t(5, 4), t(5)),
    "matmul": lambda f, t: f(t(2, 3, 4), t(4, 5)),
    "__rmatmul__": lambda f, t: f(t(4, 5), t(3, 4)),
    "mm": lambda f, t: f(t(3, 4), t(4, 5)),
    "bmm": lambda f, t: f(t(2, 3, 4), t(2, 4, 5)),
    "addmm": lambda f, t: f(t(3, 5), t(3, 4), t(4, 5)),
    "addbmm": lambda f, t: f(t(3, 5), t(2, 3, 4), t(2, 4, 5)),
    "baddbmm": lambda f, t: f(t(2, 3, 5), t(2, 3, 4), t(2, 4, 5)),
    "einsum": lambda f, t: f("bij,jk->bik", [t(2, 3, 4), t(4, 5)]),
    "vecdot": lambda f, t: pair(f, t, 3, 4),
    "prelu": lambda f, t: f(t(3, 4), t(1)),
    "conv1d": lambda f, t: f(t(2, 3, 8), t(4, 3, 3), t(4)),
    "conv2d": lambda f, t: f(t(2, 3, 8, 8), t(4, 3, 3, 3), t(4), stride=(2, 2), padding="valid"),
    "conv3d": lambda f, t: f(t(2, 3, 4, 4, 4), t(4, 3, 3, 3, 3), t(4)),
    "conv_transpose1d": lambda f, t: f(t(2, 3, 8), t(3, 4, 3), t(4)),
    "conv_transpose2d": lambda f, t: f(t(2, 3, 8, 8), t(3, 4, 3, 3), t(4)),
    "conv_transpose3d": lambda f, t: f(t(2, 3, 4, 4, 4), t(3, 4, 3, 3, 3), t(4)),
    "conv_tbc": lambda f, t: f(t(8, 2, 3), t(3, 3, 4), t(4)),
    "scaled_dot_product_attention": attention,
    "mv": lambda f, t: f(t(3, 4), t(4)),
    "addmv": lambda f, t: f(t(3), t(3, 4), t(4)),
    "addr": lambda f, t: f(t(3, 4), t(3), t(4)),
    "cross_entropy": lambda f, t: f(t(3, 4), labels(t, 0, 1, -100), t(4), label_smoothing=0.1),
    "nll_loss": lambda f, t: f(t(3, 4), labels(t, 0, 1, 3), t(4)),
    "binary_cross_entropy_with_logits": lambda f, t: pair(f, t, 3, 4),
    "mse_loss": lambda f, t: pair(f, t, 3, 4),
    "l1_loss": lambda f, t: pair(f, t, 3, 4),
    "smooth_l1_loss": lambda f, t: pair(f, t, 3, 4),
    "huber_loss": lambda f, t: pair(f, t, 3, 4),
    "kl_div": lambda f, t: f(t(3, 4), t(3, 4), **({"reduction": "sum"} if f is F.kl_div else {"reduction": 2})),
    "poisson_nll_loss": lambda f, t: f(t(3), t(3), log_input=True, full=False, eps=1e-8, **reduction(f)),
    "soft_margin_loss": lambda f, t: pair(f, t, 3, 4),
    "multi_margin_loss": lambda f, t: f(t(3, 4), labels(t, 0, 1, 3)),
    "multilabel_margin_loss": lambda f, t: f(t(4), labels(t, 0, 1, -1, -1)),
    "margin_ranking_loss": lambda f, t: f(t(3), t(3), labels(t, 1, -1, 1)),
    "hinge_embedding_loss": lambda f, t: f(t(3), labels(t, 1, -1, 1)),
    "cosine_embedding_loss": lambda f, t: f(t(3, 4), t(3, 4), labels(t, 1, -1, 1)),
    "triplet_margin_loss": lambda f, t: f(t(3, 4), t(3, 4), t(3, 4)),
    "cdist": lambda f, t: f(t(3, 4), t(5, 4)),
    "prod": lambda f, t: f(t(3, 4), -1),
    "quantile": lambda f, t: f(t(5), 0.3),
    "nanquantile": lambda f, t: f(t(5), 0.3),
    "trace": lambda f, t: f(t(4, 4)),
    "softmax": lambda f, t: f(t(3, 4), -1),
    "log_softmax": lambda f, t: f(t(3, 4), -1),
    "softmin": lambda f, t: f(t(3, 4), -1),
    "gumbel_softmax": lambda f, t: f(t(3, 4), dim=-1),
    "logsumexp": lambda f, t: f(t(3, 4), -1),
    "softplus": lambda f, t: f(t(3, 4)),
    "layer_norm": lambda f, t: f(t(3, 4), (4,), t(4), t(4)),
    "group_norm": lambda f, t: f(t(2, 4, 3), 2, t(4), t(4)),
    "rms_norm": lambda f, t: f(t(3, 4), (4,), t(4)),
    "normalize": lambda f, t: f(t(3, 4)),
    "cosine_similarity": lambda f, t: pair(f, t, 3, 4),
    "dist": lambda f, t: pair(f, t, 3, 4),
    "renorm": lambda f, t: f(t(3, 4), 2, 0, 0.5),
    "cumsum": lambda f, t: f(t(3, 4), -1),
    "cumprod": lambda f, t: f(t(3, 4), -1),
    "pow": lambda f, t: f(t(3, 4), 2),
    "__pow__": lambda f, t: f(t(3, 4), 2),
    "__rpow__": lambda f, t: f(t(3, 4), 2),
    "__rdiv__": lambda f, t: f(t(3, 4), 2),
    "__rtruediv__": lambda f, t: f(t(3, 4), 2),
    "cat": lambda f, t: f([t(3, 4), t(2, 4)]),
    "stack": lambda f, t: f((t(3, 4), t(3, 4)), dim=1),
    "index_copy": lambda f, t: f(t(3, 4), 0, labels(t, 2), t(1, 4)),
    "addcmul": lambda f, t: f(t(3, 4), t(3, 4), t(3, 4)),
    "addcdiv": lambda f, t: f(t(3, 4), t(3, 4), t(3, 4)),
    "atan2": lambda f, t: pair(f, t, 3, 4),
    "dot": lambda f, t: pair(f, t, 4),
    "vdot": lambda f, t: pair(f, t, 4),
    "index_put": lambda f, t: f(t(3, 4), (labels(t, 2),), t(1, 4)),
    "scatter_add": lambda f, t: f(t(3, 4), 0, labels(t, 2, 1, 0, 1)[None], t(1, 4)),
}
ONE_MATRIX = "norm vector_norm matrix_norm pdist sum exp expm1 log log1p log2 log10 reciprocal rsqrt acos asin cosh sinh tan erfinv"
CALLS |= {name: lambda f, t: f(t(3, 4)) for name in ONE_MATRIX.split()}

# What models call besides and the table does not name.
OTHERS = {
    "embedding": lambda t: F.embedding(labels(t, 0, 2), t(3, 4)),
    "batch_norm": lambda t: F.batch_norm(t(4, 3, 5, 5), t(3).detach(), t(3).detach(), t(3), t(3), training=True),
    "batch_norm in eval": lambda t: F.batch_norm(t(4, 3, 5, 5), t(3).detach(), t(3).detach(), t(3), t(3)),
    "gelu": lambda t: F.gelu(t(3, 4)),
    "relu": lambda t: F.relu(t(3, 4)),
    "relu_": lambda t: F.relu(t(3, 4) + 0, inplace=True),
    "tanh": lambda t: torch.tanh(t(3, 4)),
    "sigmoid": lambda t: t(3, 4).sigmoid(),
    "dropout": lambda t: F.dropout(t(3, 4), 0.5),
    "max_pool2d": lambda t: F.max_pool2d(t(2, 3, 8, 8), 3, 2, 1),
    "avg_pool2d": lambda t: F.avg_pool2d(t(2, 3, 8, 8), 2),
    "adaptive_avg_pool2d": lambda t: F.adaptive_avg_pool2d(t(2, 3, 8, 8), 1),
    "mean": lambda t: t(3, 4).mean(1),
    "var": lambda t: t(3, 4).var(1),
    "add": lambda t: t(3, 4) + t(3, 4),
    "add a number": lambda t: t(3, 4) + 1,
    "mul": lambda t: t(3, 4) * t(4),
    "div": lambda t: t(3, 4) / t(4),
    "lerp": lambda t: torch.lerp(t(3), t(3), 0.5),
    "where": lambda t: torch.where(t(3) > 0.5, t(3), t(3)),
    "masked_fill": lambda t: t(3).masked_fill(t(3) > 0.5, 0.0),
    "abs": lambda t: t(3).abs(),
    "sqrt": lambda t: t(3).sqrt(),
    "flatten": lambda t: t(2, 3, 4).flatten(1),
    "gather": lambda t: t(3).gather(0, labels(t, 2, 1)),
    "index_select": lambda t: t(3).index_select(0, labels(t, 2, 1)),
    "matmul of views": lambda t: t(3, 4).t() @ t(3, 4),
    "matmul with out": lambda t: torch.matmul(t(3, 4).detach(), t(4, 3).detach(), out=torch.empty(3, 3, device=t.device)),
    "add_": lambda t: (t(3) + 0).add_(t(3)),
    "addmm_": lambda t: (t(3, 3) + 0).addmm_(t(3, 4), t(4, 3)),
    "sum of integers": lambda t: labels(t, 2, 1).sum() + t(1),
    "softmax with a dtype": lambda t: F.softmax(t(3, 4), -1, dtype=torch.float32),
    "lora": lambda t: F.linear(t(3, 8), t(5, 8), t(5)) + F.linear(F.linear(t(3, 8), t(2, 8)), t(5, 2)) * 0.5,
    "dora": lambda t: F.linear(t(3, 8), t(5, 1) * (w := t(5, 8) + t(5, 2) @ t(2, 8)) / torch.linalg.vector_norm(w, dim=1)[:, None]),
    "weight decay": lambda t: (t(3, 4) ** 2).sum() + 1 / t(3, 4).norm(),
}


def in_table(f, name):
    return lambda t: CALLS[name](f, t)


OPERATIONS = OTHERS | {
    f"{space}.{name}": in_table(getattr(module, name), name)
    for space, module in SPACES.items()
    for _, _, names in TABLE
    for name in names.split()
    if hasattr(module, name)
}
TYPES = {
    "float32": [torch.float32],
    "low": [torch.bfloat16],
    "float32 first": [torch.float32, torch.bfloat16],
    "low first": [torch.bfloat16, torch.float32],
    "float64": [torch.float64],
}


class Leaves:
    """t(*shape): a leaf with gradient, always the same, in one of `types` after the other."""

    def __init__(self, types, device: str):
        self.types, self.device, self.made = types, device, []

    def __call__(self, *shape):
        x = torch.rand(shape, device=self.device) * 0.8 + 0.1
        self.made.append(x.to(self.types[len(self.made) % len(self.types)]).requires_grad_())
        return self.made[-1]


def outcome(operation, types, policy, device="cpu", backward=True):
    """The output and the gradients, or the type of what was raised."""
    torch.manual_seed(0)
    leaves = Leaves(types, device)
    try:
        with policy:
            output = operation(leaves)
        if backward and output.requires_grad:
            output.sum().backward()
    except (RuntimeError, NotImplementedError) as error:
        return type(error)
    return output, [x.grad for x in leaves.made]


def assert_same(ours, theirs):
    if isinstance(theirs, type):
        assert ours is theirs
        return
    for a, b in zip([ours[0], *ours[1]], [theirs[0], *theirs[1]], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)  # the dtype too


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_on_a_cpu(name):
    for types in TYPES.values():
        theirs = outcome(OPERATIONS[name], types, torch.autocast("cpu", torch.bfloat16))
        assert_same(outcome(OPERATIONS[name], types, LowPrecision(torch.bfloat16)), theirs)


@contextlib.contextmanager
def autocast_without_a_device(dtype):
    """torch.autocast("cuda") switches itself off where there is no CUDA; the tables behind it work all the same."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


def left_to_its_inside(name: str) -> bool:
    """rms_norm is cast as a whole from the torch on that lists it; before, what it is made of is."""
    listed = torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA")
    return name.endswith("rms_norm") and not any("rms_norm" in one for one in listed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPERATIONS)
def test_types_on_cuda_by_fake_tensors(name):
    """CUDA's half of the table, without a device: fake tensors have a device and a type, and no numbers."""
    if name.endswith("trace"):
        pytest.skip("on CUDA torch makes it of a sum, which is cast; fake tensors do not look inside")
    if left_to_its_inside(name):
        pytest.skip("this torch does not list it")
    for types in TYPES.values():
        with FakeTensorMode():
            theirs = outcome(OPERATIONS[name], types, autocast_without_a_device(torch.bfloat16), "cuda", backward=False)
            ours = outcome(OPERATIONS[name], types, LowPrecision(torch.bfloat16), "cuda", backward=False)
        if isinstance(theirs, type):
            assert ours is theirs
        else:
            assert ours[0].dtype == theirs[0].dtype


# Registered with autocast and not in the table: see the docstring of minift/optim/precision.py.
LEFT_OUT = {
    "decompositions": r"cholesky.*|geqrf|qr|inverse|lu_solve|orgqr|ormqr|pinverse|svd|triangular_solve",
    "decompositions of torch.linalg": r"linalg_(?!vec|vector|matrix_norm).*",
    "transforms": r"fft_.*|stft|polar|view_as_complex",
    "resampling and padding": r"grid_sampler.*|upsample_.*|reflection_pad.*|replication_pad.*",
    "pooling": r".*_pool3d|max_unpool.*|fractional_max_pool.*",
    "recurrent cells": r"lstm_cell|gru_cell|rnn_.*_cell|mkldnn_rnn_layer|ctc_loss",
    "refused by autocast on CUDA": r"binary_cross_entropy",
    "products of which autocast sees the inside": r"bilinear|tensordot|chain_matmul|cross",
    "old names": r"frobenius_norm|nuclear_norm",
    "of a quantiser, of a backend, of torch's own": r"fake_quantize.*|cudnn_.*|_.*|convolution|native_layer_norm",
    "known by another name": r"cross_entropy_loss|nll_loss2d|multilabel_margin_loss_forward|linalg_vec.*|linalg_matrix_norm",
}


@pytest.mark.parametrize(("key", "device"), [("AutocastCPU", "cpu"), ("AutocastCUDA", "cuda")])
def test_nothing_that_autocast_lists_is_forgotten(key, device):
    """A torch that casts more than the table fails here, and says what."""
    registered = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    listed = {name.removeprefix("aten::").partition(".")[0] for name in registered if name.startswith("aten::")}
    known = {name for _, devices, names in TABLE if device in devices for name in names.split()}
    assert not {name for name in listed - known if not re.fullmatch("|".join(LEFT_OUT.values()), name)}


def test_every_name_of_the_table_is_a_function_and_is_tested_once():
    rows = [(name, device) for _, devices, names in TABLE for device in devices.split() for name in names.split()]
    assert len(rows) == len(set(rows))
    assert {name for name, _ in rows} == set(CALLS)
    tested = [getattr(module, name) for module in SPACES.values() for name in CALLS if hasattr(module, name)]
    assert set(tested) == set(POLICIES)


def bert():
    """A model, its inputs, and what of its output to train on."""
    tokens, mask, types = inputs(CONFIG.vocab_size, padded=True, pairs=True)
    return tiny_body(), (tokens, mask, types), lambda state: state.pooled


def resnet():
    torch.manual_seed(0)
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5), (torch.randn(4, 3, 32, 32),), lambda logits: logits


def gpt2():
    tokens, mask, _ = inputs(CONFIG.vocab_size, padded=True, pairs=False)
    return tiny_gpt2(), (tokens, mask), lambda state: state.pooled


MODELS = {"bert": bert, "gpt2": gpt2, "resnet": resnet}


def listen(model) -> dict[str, torch.dtype]:
    """Fills, while `model` runs, with the type that every module returns."""
    types = {}

    def note(name, output):
        if isinstance(output, torch.Tensor):
            types[name] = output.dtype

    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, arguments, output, name=name: note(name, output))
    return types


def training_step(model, arguments, read_out, policy):
    """The loss in train mode, with dropout; the gradients; the type that every module returned."""
    types = listen(model.train())
    torch.manual_seed(3)
    with policy:
        loss = F.cross_entropy(read_out(model(*arguments)), torch.arange(4, device=arguments[0].device))
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters()}, types


def distance(ours: dict, theirs: dict) -> float:
    """|ours - theirs| / |theirs| over all the gradients together."""
    a, b = (torch.cat([gradients[name].flatten() for name in theirs]) for gradients in (ours, theirs))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_whole_models(model, dtype):
    """The loss and every gradient bit by bit, and the type that every module returns."""
    loss, gradients, types = training_step(*MODELS[model](), LowPrecision(dtype))
    their_loss, their_gradients, their_types = training_step(*MODELS[model](), torch.autocast("cpu", dtype))
    assert types == their_types
    assert len(types) > 30 and dtype in types.values()
    torch.testing.assert_close(loss, their_loss, rtol=0, atol=0)
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    torch.testing.assert_close(gradients, their_gradients, rtol=0, atol=0)
    plain_loss, plain_gradients, _ = training_step(*MODELS[model](), contextlib.nullcontext())
    assert loss != plain_loss
    assert distance(gradients, plain_gradients) > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_bert_against_transformers_under_autocast(dtype):
    body, (tokens, mask, types), pooled = bert()
    reference = twin(body)
    loss, gradients, _ = training_step(body, (tokens, mask, types), pooled, LowPrecision(dtype))
    autocast = torch.autocast("cpu", dtype)
    theirs = training_step(reference, (tokens, mask.long(), types), lambda output: output.pooler_output, autocast)
    assert abs(loss - theirs[0]) < 2e-2 * theirs[0]
    assert distance(gradients, {ours: theirs[1][name] for ours, name in names(body).items()}) < 2e-2


@pytest.mark.parametrize("name", MODELS)
def test_types_of_whole_models_on_cuda_by_fake_tensors(name):
    found = []
    for policy in (LowPrecision(torch.float16), autocast_without_a_device(torch.float16)):
        with FakeTensorMode():
            with torch.device("cuda"):
                if name == "resnet":
                    model, arguments = ResNet(Bottleneck, [1, 1, 1, 1]), (torch.ones(4, 3, 64, 64),)
                else:
                    model = Bert(CONFIG) if name == "bert" else Gpt2(Gpt2Config(n_embd=16, n_layer=3, n_head=4))
                    arguments = (torch.ones(4, 12, dtype=torch.int64),)
            found.append(listen(model))
            with policy:
                model(*arguments)
    assert found[0] == found[1]
    assert len(found[0]) > 30 and torch.float16 in found[0].values()
    assert (torch.float32 in found[0].values()) == (name != "resnet")  # LayerNorm


class Casts(TorchDispatchMode):
    """Counts the casts of float32 weights, i.e. of matrices, to a low type."""

    def __enter__(self):
        self.count = 0
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.dtype == torch.bfloat16 and output.shape == (16, 16):
            self.count += args[0].dtype == torch.float32
        return output


def layers(frozen: bool) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).requires_grad_(not frozen)


def under_autocast(model, x):
    with torch.autocast("cpu", torch.bfloat16):
        return model(x)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_a_weight_is_cast_once_where_it_does_not_train_and_else_each_time(frozen, context):
    model, precision, casts = layers(frozen), LowPrecision(torch.bfloat16), Casts()
    counts = []
    for _ in range(3):
        with context(), casts, precision:
            model(torch.ones(1, 16))
        counts.append(casts.count)
    rests = frozen or context is not contextlib.nullcontext
    assert counts == ([2, 0, 0] if rests else [2, 2, 2])
    assert len(precision.kept) == (4 if rests else 0)  # weights and biases, no activation


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_what_scoring_has_cast_is_not_what_training_uses(context):
    model, precision, x = layers(frozen=False), LowPrecision(torch.bfloat16), torch.ones(1, 16)
    expected = under_autocast(model, x)
    for _ in range(2):  # epochs
        with context(), precision:
            assert torch.equal(model(x), expected)
        assert len(precision.kept) == 4
        with precision:
            model(x).sum().backward()
        assert len(precision.kept) == 0 and all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(p.grad)
                p.grad = None
        before, expected = expected, under_autocast(model, x)
        assert not torch.equal(before, expected)


def write(p):
    with torch.no_grad():
        p.mul_(2)


def write_to_a_view(p):
    with torch.no_grad():
        p.view(-1)[3:7].add_(5)


def replace(p):
    p.data = p.data * 2


def replace_by_a_view_of_the_same_memory(p):
    p.data = p.data.t()


def replace_twice(p):
    """The second time, the memory of the first weight is free to be used again."""
    p.data = p.data.half()
    p.data = (p.data * 2).float()


def thaw_train_and_freeze(p):
    p.requires_grad_(True)
    p.grad = torch.ones_like(p)
    AdamW([Group("all", 0.1, 0.0, [], [p])]).step()
    p.requires_grad_(False)


@pytest.mark.parametrize(
    "change", [write, write_to_a_view, replace, replace_by_a_view_of_the_same_memory, replace_twice, thaw_train_and_freeze]
)
def test_a_changed_frozen_weight_is_noticed(change):
    model, precision, x = layers(frozen=True), LowPrecision(torch.bfloat16), torch.ones(1, 16)
    with precision:
        before = model(x)
    for _ in range(3):
        change(model[2].weight)
        with precision:
            after = model(x)
        assert torch.equal(after, under_autocast(model, x))
        assert not torch.equal(after, before)
        before = after


def test_loaded_weights_are_noticed():
    model, other, precision, x = layers(True), layers(True), LowPrecision(torch.bfloat16), torch.ones(1, 16)
    with precision:
        model(x)
    write(other[0].weight)
    model.load_state_dict(other.state_dict())
    with precision:
        assert torch.equal(model(x), under_autocast(other, x))


def test_a_copy_has_casts_of_its_own():
    model, precision, x = layers(frozen=True), LowPrecision(torch.bfloat16), torch.ones(1, 16)
    with precision:
        before = model(x)
        other = copy.deepcopy(model)
        write(other[2].weight)
        assert torch.equal(model(x), before)
        assert torch.equal(other(x), under_autocast(other, x)) and not torch.equal(other(x), before)
    assert len(precision.kept) == 8


def test_kept_casts_go_with_the_model():
    model, precision = layers(frozen=True), LowPrecision(torch.bfloat16)
    with precision:
        model(torch.ones(1, 16))
    kept = [weakref.ref(x) for entry in precision.kept.values() for x in (entry.low, entry.source)]
    assert len(kept) == 8
    del model
    gc.collect()
    assert len(precision.kept) == 0 and all(reference() is None for reference in kept)


def test_a_cast_kept_in_inference_mode_can_be_trained_through():
    model, precision = layers(frozen=True), LowPrecision(torch.bfloat16)
    with torch.inference_mode(), precision:
        model(torch.ones(1, 16))
    x, y = (torch.ones(1, 16, requires_grad=True) for _ in range(2))
    with precision:
        model(x).sum().backward()
    under_autocast(model, y).sum().backward()
    assert torch.equal(x.grad, y.grad) and x.grad.dtype == torch.float32


def test_a_model_made_in_inference_mode_runs():
    with torch.inference_mode():
        model, x = layers(frozen=True), torch.ones(1, 16)
        with LowPrecision(torch.bfloat16):
            assert torch.equal(model(x), under_autocast(model, x))


def test_recomputed_activations_are_the_same():
    """As the docstring of LowPrecision says it: without context_fn the backward pass would recompute in float32."""
    gradients = {}
    for how in ("plain", "recomputed", "autocast"):
        model, x, precision = layers(frozen=False), torch.linspace(0, 1, 16)[None], LowPrecision(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16) if how == "autocast" else precision:
            if how == "recomputed":
                enter = partial(lambda again: (contextlib.nullcontext(), again), precision)
                output = checkpoint(model, x, use_reentrant=False, context_fn=enter)
            else:
                output = model(x)
        output.float().square().sum().backward()
        gradients[how] = [p.grad for p in model.parameters()]
    torch.testing.assert_close(gradients["recomputed"], gradients["plain"], rtol=0, atol=0)
    torch.testing.assert_close(gradients["plain"], gradients["autocast"], rtol=0, atol=0)


def test_the_policy_ends_with_the_block():
    with pytest.raises(ZeroDivisionError), LowPrecision(torch.bfloat16):
        assert torch.ones(2, 2).matmul(torch.ones(2, 2)).dtype == torch.bfloat16
        raise ZeroDivisionError
    assert torch.ones(2, 2).matmul(torch.ones(2, 2)).dtype == torch.float32


class WithBuffer(nn.Module):
    """A frozen matrix that is no parameter, as VeRA has two."""

    def __init__(self):
        super().__init__()
        self.register_buffer("A", torch.linspace(-1, 1, 256).view(16, 16))

    def forward(self, x):
        return F.linear(x, self.A)


@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_a_buffer_of_the_model_is_cast_once_and_an_activation_each_time(context):
    model, casts = WithBuffer(), Casts()
    precision, counts = LowPrecision(torch.bfloat16, model), []
    for x in (torch.ones(1, 16), torch.eye(16), torch.eye(16)):  # the last two are as large as the buffer
        with context(), casts, precision:
            output = model(x)
        counts.append(casts.count)
        assert torch.equal(output, under_autocast(model, x))
    assert counts == [1, 1, 1]
    assert len(precision.kept) == 1


def test_a_changed_buffer_is_noticed_and_a_replaced_one_is_cast_each_time():
    model, x = WithBuffer(), torch.ones(1, 16)
    precision, casts = LowPrecision(torch.bfloat16, model), Casts()
    with precision:
        model(x)
        model.A.mul_(3)
        assert torch.equal(model(x), under_autocast(model, x))
    model.A = model.A * 2
    for _ in range(2):
        with casts, precision:
            assert torch.equal(model(x), under_autocast(model, x))
    assert casts.count >= 1 and len(precision.kept) == 0  # the old buffer is gone, its cast with it


def test_autocast():
    assert isinstance(autocast(torch.float32), Float32) and autocast(torch.float32).dtype == torch.float32
    assert isinstance(autocast(torch.float16), LowPrecision) and autocast(torch.float16).dtype == torch.float16
    model = layers(frozen=False)
    with autocast(torch.float32, model) as precision, precision:  # entered twice, as recomputation does
        assert model(torch.ones(1, 16)).dtype == torch.float32


def test_float32_products_restores_what_was_set():
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        for allowed, matmul in ((True, "high"), (False, "highest")):
            torch.backends.cudnn.allow_tf32 = allowed
            torch.set_float32_matmul_precision(matmul)
            with pytest.raises(ZeroDivisionError), float32_products(tf32=False):
                assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (False, "highest")
                raise ZeroDivisionError
            assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (allowed, matmul)
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


@on_cuda
def test_convolutions_on_cuda_without_tf32():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 64, 16, 16, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
    exact = F.conv2d(x.double(), weight.double())
    with float32_products(tf32=False):
        y = F.conv2d(x.cuda(), weight.cuda()).cpu()
    assert (y - exact).abs().max() < 1e-3 * exact.abs().max() / 10


def scaled_steps(device, interval, start, injected, gradient=2.0**-9):
    """Walk LossScaler and torch's GradScaler through the same steps; injected: None or the number to put into a gradient."""
    ours, theirs = ([torch.full((4,), 1.0, device=device, requires_grad=True) for _ in range(2)] for _ in range(2))
    scaler, optimizer = LossScaler(start, interval), torch.optim.SGD(ours, lr=0.1)
    reference, their_optimizer = (
        torch.amp.GradScaler(device, init_scale=start, growth_interval=interval),
        torch.optim.SGD(theirs, lr=0.1),
    )
    for step, number in enumerate(injected):
        for parameters, scale in ((ours, scaler.scale), (theirs, reference.scale)):
            for p in parameters:
                p.grad = None
            scale(sum((p * gradient).sum() for p in parameters)).backward()
            if number is not None:
                parameters[step % 2].grad[step % 4] = number
        finite = scaler.unscale(ours)
        reference.unscale_(their_optimizer)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, equal_nan=True)
        if finite:
            optimizer.step()
        scaler.update(finite)
        reference.step(their_optimizer)
        reference.update()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert (reference.get_scale(), reference._get_growth_tracker()) == (scaler.S, scaler.n), step
        yield scaler


@pytest.mark.parametrize("interval", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.2, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_scaler_trajectory(interval, share, seed):
    random = Random(seed)
    bad = [float("inf"), -float("inf"), float("nan")]
    injected = [random.choice(bad) if random.random() < share else None for _ in range(150)]
    scales = {scaler.S for scaler in scaled_steps("cpu", interval, 65536.0, injected)}
    assert len(scales) > 1


@pytest.mark.parametrize(("gradient", "scales"), [(2.0**-9, {2.0**127}), (2.0**4, {2.0**123, 2.0**124})])
def test_scaler_at_the_end_of_float32(gradient, scales):
    """The scale stops at 2^127, the largest power of two, or goes to and fro where a gradient overflows before that."""
    walked = [scaler.S for scaler in scaled_steps("cpu", 1, 2.0**120, [None] * 40, gradient)]
    assert set(walked[-4:]) == scales


def test_scaler_defaults_and_state():
    ours, theirs = LossScaler(), torch.amp.GradScaler("cpu")
    assert (theirs.get_scale(), theirs.get_growth_interval()) == (ours.S, ours.N)
    assert (theirs.get_growth_factor(), theirs.get_backoff_factor()) == (2, 0.5)
    ours.update(False)
    for _ in range(1234):
        ours.update(True)
    other = LossScaler()
    other.load_state_dict(ours.state_dict())
    for _ in range(2000):
        assert (other.S, other.n, other.skipped) == (ours.S, ours.n, 1)
        other.update(True)
        ours.update(True)
    assert ours.S == 65536.0 and ours.n == 1234
    assert ours.unscale([torch.ones(2, requires_grad=True)])  # no gradient, none that is not finite


def test_a_scale_does_not_reach_0():
    """torch's does, after which every loss is 0 and every gradient NaN."""
    scaler = LossScaler()
    with pytest.raises(ValueError, match=r"no step had finite gradients in float16 while the loss scale fell to 1\.2e-38"):
        for _ in range(1000):
            scaler.update(False)
    assert torch.finfo(torch.float32).tiny == scaler.S and scaler.skipped == 1 + 16 + 126


@pytest.mark.parametrize(
    "change", [{"scale": 0.0}, {"scale": float("nan")}, {"finite_steps": -1}, {"finite_steps": 2000}, {"other": 1}]
)
def test_a_scaler_refuses_a_state_that_it_cannot_have(change):
    state = LossScaler().state_dict() | {name: torch.tensor(value) for name, value in change.items()}
    with pytest.raises(ValueError, match="loss scaler"):
        LossScaler().load_state_dict(state)
    with pytest.raises(ValueError, match="found nothing"):
        LossScaler().load_state_dict({})


@pytest.mark.parametrize("stop", [0, 1, 7, 29])
def test_a_scaler_resumes_in_the_middle_bit_for_bit(stop):
    """Weights, optimiser and scaler stored at one step: from there on the same weights as without a stop, skipped steps too."""

    def walk(parameter, optimizer, scaler, steps):
        seen = []
        for step in steps:
            x = torch.linspace(0.5, 2, 12).view(3, 4) * (1e6 if step % 5 == 3 else 1.0)  # beyond float16 in every fifth step
            with LowPrecision(torch.float16):
                loss = F.mse_loss(F.linear(x, parameter), torch.ones(3, 2))
            scaler.scale(loss).backward()
            finite = scaler.unscale([parameter])
            if finite:
                optimizer.step()
            scaler.update(finite)
            optimizer.zero_grad()
            seen.append((parameter.detach().clone(), scaler.S, scaler.n, scaler.skipped))
        return seen

    def fresh():
        parameter = nn.Parameter(torch.full((2, 4), 0.5))
        return parameter, AdamW([Group("all", 0.01, 0.1, ["weight"], [parameter])]), LossScaler(1024.0, 2)

    whole = walk(*fresh(), range(30))
    assert len({scale for _, scale, _, _ in whole}) > 2 and whole[-1][3] == 6
    first = fresh()
    walk(*first, range(stop))
    parameter, optimizer, scaler = fresh()
    parameter.data.copy_(first[0].data)
    optimizer.load_state_dict({name: tensor.clone() for name, tensor in first[1].state_dict().items()})
    scaler.load_state_dict(first[2].state_dict())
    for (a, *ours), (b, *theirs) in zip(walk(parameter, optimizer, scaler, range(stop, 30)), whole[stop:], strict=True):
        assert torch.equal(a, b) and ours == theirs


def test_scaling_saves_gradients_that_float16_cannot_hold():
    found = {}
    for how in ("float32", "float16", "scaled"):
        weight, x = torch.full((2, 4), 0.5, requires_grad=True), torch.linspace(0.5, 2, 12).view(3, 4)
        scaler = LossScaler()
        with contextlib.nullcontext() if how == "float32" else LowPrecision(torch.float16):
            loss = F.mse_loss(F.linear(x, weight), torch.zeros(3, 2)) * 1e-8
        (scaler.scale(loss) if how == "scaled" else loss).backward()
        assert how != "scaled" or scaler.unscale([weight])
        found[how] = weight.grad
    assert not found["float16"].any()
    torch.testing.assert_close(found["scaled"], found["float32"], rtol=2e-3, atol=0)


@on_cuda
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("types", TYPES)
def test_operations_on_cuda(types, dtype):
    low = [dtype if t == torch.bfloat16 else t for t in TYPES[types]]
    for name, operation in OPERATIONS.items():
        if left_to_its_inside(name):
            continue
        drawn_wide = "gumbel_softmax" in name and types != "float64"  # see LowPrecision
        same = (lambda t, f=operation: f(lambda *s: t(*s).float())) if drawn_wide else operation
        theirs = outcome(same, low, torch.autocast("cuda", dtype), "cuda", backward=False)
        ours = outcome(operation, low, LowPrecision(dtype), "cuda", backward=False)
        if isinstance(theirs, type):
            assert ours is theirs, name
        else:
            torch.testing.assert_close(ours[0], theirs[0], msg=lambda message, name=name: f"{name}: {message}")


@on_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_whole_models_on_cuda(model, dtype):
    def step(policy):
        body, arguments, read_out = MODELS[model]()
        return training_step(body.cuda(), [x.cuda() for x in arguments], read_out, policy)

    loss, gradients, types = step(LowPrecision(dtype))
    their_loss, their_gradients, their_types = step(torch.autocast("cuda", dtype))
    assert types == their_types
    assert abs(loss - their_loss) < 2e-2 * their_loss
    assert distance(gradients, their_gradients) < 2e-2


@on_cuda
@pytest.mark.parametrize("interval", [1, 3])
def test_scaler_trajectory_on_cuda(interval):
    injected = [None, None, float("inf"), None, float("nan"), None, None, None, None, None]
    assert len({scaler.S for scaler in scaled_steps("cuda", interval, 65536.0, injected)}) > 1
