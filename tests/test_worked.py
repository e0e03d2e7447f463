"""Each mechanism worked by hand on two or three numbers, with the numbers between, to follow with a pencil.

ln 3 = 1.098612: softmax(ln 3, 0) = (3/4, 1/4). Literals are rounded to six digits. Others of this kind: L2-SP
(tests/optim/test_penalties.py), BitFit (tests/methods/test_bitfit.py), windows (tests/data/test_windows.py), entities
(tests/reference/test_metrics_entities.py), exact match and F1 (tests/reference/test_metrics_squad.py).
"""

import math

import numpy as np
import torch
from loop import batch_of
from torch import nn

from minift.merging import interpolate
from minift.methods.dora import DoRA
from minift.methods.houlsby import Bottleneck
from minift.methods.ia3 import IA3
from minift.methods.lora import LoRA
from minift.methods.surgery import merged_layer
from minift.metrics.classification import classification_metrics, confusion_matrix
from minift.metrics.entities import grammar, greedy, viterbi
from minift.metrics.regression import mean_squared_error, pearson, spearman
from minift.models.bert import Attend, BertConfig, Layer, State
from minift.optim.adamw import AdamW
from minift.optim.groups import Group, clip_gradients
from minift.optim.schedules import cosine, linear, warmup_steps
from minift.optim.sgd import SGD
from minift.pretrained import Checkpoint
from minift.tasks.classification import Classification
from minift.tasks.masked_lm import NO_LABEL, losses
from minift.tasks.multi_label_classification import MultiLabelClassification

LN3 = math.log(3)


def numbers(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found, expected) -> None:
    """Equal up to the rounding of the literals."""
    found = found.detach() if isinstance(found, torch.Tensor) else numbers(found)
    torch.testing.assert_close(found, numbers(expected), rtol=0, atol=6e-7)


def linear_layer(weight, bias=None) -> nn.Linear:
    """y = W x + b"""
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None, dtype=torch.float64)
    layer.weight.data = numbers(weight)
    if bias is not None:
        layer.bias.data = numbers(bias)
    return layer


def put(parameter: nn.Parameter, values) -> None:
    assert parameter.shape == numbers(values).shape
    parameter.data = numbers(values)


# ---- models ----


def test_attention():
    """q = (2 ln 3, 0, 0, 0); keys (1, 0, 0, 0) and (0, 1, 0, 0); d = 4, so the scores are q k / 2 = (ln 3, 0), their softmax
    (3/4, 1/4); values 8 and 4 in the first channel: 3/4 8 + 1/4 4 = 7."""
    q, k, v = torch.zeros(3, 1, 1, 2, 4, dtype=torch.float64)
    q[..., 0, 0], k[..., 0, 0], k[..., 1, 1] = 2 * LN3, 1, 1
    v[..., 0, 0], v[..., 1, 0] = 8, 4
    attend = Attend(dropout=0.0)
    close(attend(q, k, v, None)[0, 0, 0], [7, 0, 0, 0])
    close(attend(q, k, v, None)[0, 0, 1], [6, 0, 0, 0])  # a query of 0 sees both alike: 8/2 + 4/2
    close(attend(q, k, v, torch.tensor([[False, True]]))[0, 0, 0], [4, 0, 0, 0])  # the first column is padding: softmax (0, 1)


def test_layer_norm_and_where_it_stands():
    """A layer of BERT whose branches give 0: y = LN2(LN1(x + 0) + 0), eps = 3.

    x = (1, 3): mean 2, variance 1, so (x - 2) / sqrt(1 + 3) = (-1/2, 1/2); times (2, 4) plus (1, 0): (0, 2).
    Again: mean 1, variance 1: (-1/2, 1/2).
    """
    layer = Layer(BertConfig(hidden_size=2, num_attention_heads=1, intermediate_size=2, layer_norm_eps=3.0)).double().eval()
    for branch in (layer.attention, layer.feed_forward):
        for parameter in branch.output.parameters():
            nn.init.zeros_(parameter)
    put(layer.attention_norm.weight, [2, 4])
    put(layer.attention_norm.bias, [1, 0])
    x = numbers([[[1, 3]]])  # (B, S, D)
    close(layer.attention_norm(x), [[[0, 2]]])
    close(layer(State(None, None, None, hidden=x)).hidden, [[[-0.5, 0.5]]])


# ---- methods ----

W = [[1, 2], [3, 4]]


def test_lora():
    """s = alpha / r = 2 / 1. x = (1, 1): W x = (3, 7), A x = 1, B A x = (2, 1), s B A x = (4, 2), y = (7, 9).

    Merged: W + s B A = [[1, 2], [3, 4]] + 2 [[2, 0], [1, 0]] = [[5, 2], [5, 4]].
    """
    layer = LoRA(linear_layer(W), rank=1, scale=2.0, dropout=0.0)
    x = numbers([1, 1])
    close(layer(x), [3, 7])  # B starts as 0
    put(layer.A, [[1, 0]])
    put(layer.B, [[2], [1]])
    close(layer(x), [7, 9])
    close(merged_layer(layer).weight, [[5, 2], [5, 4]])


def test_dora():
    """W = [[3, 0], [0, 1]], s = 1, A = (0, 4), B = (1, 0): V = [[3, 4], [0, 1]], the norms of its rows (5, 1); m = (10, 2).

    x = (1, 1): V x = (7, 1), y = m V x / |V| = (10 7 / 5, 2 1 / 1) = (14, 2). Merged: (10 / 5) (3, 4) = (6, 8) and 2 (0, 1).
    """
    layer = DoRA(linear_layer([[3, 0], [0, 1]]), rank=1, scale=1.0, dropout=0.0)
    close(layer.m, [3, 1])  # starts as the norms of the rows of W
    put(layer.A, [[0, 4]])
    put(layer.B, [[1], [0]])
    put(layer.m, [10, 2])
    close(layer(numbers([1, 1])), [14, 2])
    close(merged_layer(layer).weight, [[6, 8], [0, 2]])


def test_ia3():
    """x = (1, 1), b = (1, 0): W x + b = (4, 7). l = (2, 10) scales what comes out: (8, 70); or what goes in: W (2, 10) + b."""
    out, into = IA3(linear_layer(W, [1, 0]), inputs=False), IA3(linear_layer(W, [1, 0]), inputs=True)
    put(out.scale, [2, 10])
    put(into.scale, [2, 10])
    x = numbers([1, 1])
    close(out(x), [8, 70])
    close(into(x), [23, 46])  # (1 2 + 2 10 + 1, 3 2 + 4 10)
    close(merged_layer(out).weight, [[2, 4], [30, 40]])
    close(merged_layer(into).weight, [[2, 20], [6, 40]])


def test_bottleneck():
    """h = (1, 2), one channel in the middle: down 3 h1 - 1 h2 = 1, relu 1, up (10, 20): (10, 20). The other sign: relu gives 0."""
    bottleneck = Bottleneck(2, 1, "relu", "identity", torch.zeros(2, dtype=torch.float64))
    put(bottleneck.down.weight, [[3, -1]])
    put(bottleneck.up.weight, [[10], [20]])
    close(bottleneck(numbers([[1, 2], [-1, -2]])), [[10, 20], [0, 0]])


def test_wise_ft():
    """A quarter of the way back: 3/4 of the trained weight 8 and 1/4 of the pretrained 4."""
    base, tuned = (Checkpoint("bert", {}, {"w": torch.tensor([w])}, None, "") for w in (4.0, 8.0))
    close(interpolate(tuned, base, 0.75).tensors["w"].double(), [7])


# ---- optimisers ----


def one_weight(optimizer: type, lr: float, weight_decay: float, **options):
    theta = nn.Parameter(numbers([1.0]))
    return theta, optimizer([Group("head", lr, weight_decay, ["theta"], [theta])], **options)


def test_adamw():
    """lr 0.1, lambda 0.5, beta 0.5 and 0.75, eps next to 0, gradients 2, 0, -2. theta first shrinks by 1 - 0.1 0.5 = 0.95.

    t  m                v                   m / (1 - 0.5^t)  v / (1 - 0.75^t)  m / sqrt(v)  theta
    1  0.5 2 = 1        0.25 4 = 1          2                4                  1           0.95 - 0.1          = 0.85
    2  0.5              0.75                0.5 / 0.75       0.75 / 0.4375      0.509175    0.8075 - 0.0509175  = 0.756582
    3  0.25 - 1         0.5625 + 1          -0.857143        2.702703          -0.521380    0.718753 + 0.052138 = 0.770891
    """
    for fused in (True, False):
        theta, optimizer = one_weight(AdamW, 0.1, 0.5, betas=(0.5, 0.75), eps=1e-30, fused=fused)
        for g, m, v, expected in ((2, 1, 1, 0.85), (0, 0.5, 0.75, 0.756582), (-2, -0.75, 1.5625, 0.770891)):
            theta.grad = numbers([g])
            optimizer.step()
            for found, right in zip(optimizer.state[theta][1:], (m, v), strict=True):
                close(found, [right])
            close(theta, [expected])


def test_sgd():
    """lr 0.1, momentum 0.5, gradient 1: m = 1, then 0.5 1 + 1 = 1.5, then 0.5 1.5 + 1 = 1.75; theta = 0.9, 0.75, 0.575."""
    theta, optimizer = one_weight(SGD, 0.1, 0.0, momentum=0.5)
    for expected in (0.9, 0.75, 0.575):
        theta.grad = numbers([1.0])
        optimizer.step()
        close(theta, [expected])


def test_warm_up_and_decay():
    """T = 5 steps, 40 % of them warm-up: W = 2. Up 0/2, 1/2; from the peak down (5 - s) / 3. Cosine over 4 steps: (1 + cos) / 2."""
    assert warmup_steps(0.4, 5) == 2
    close([linear(s, 5, 2) for s in range(5)], [0, 0.5, 1, 0.666667, 0.333333])
    close([cosine(s, 4, 0) for s in range(4)], [1, 0.853553, 0.5, 0.146447])


def test_clipping():
    """Gradients 3 and 4 have together the norm 5: times 1 / 5. Those of norm 0.5 stay."""
    for before, norm, after in (((3, 4), 5, (0.6, 0.8)), ((0.3, 0.4), 0.5, (0.3, 0.4))):
        weights = [nn.Parameter(numbers([0.0])) for _ in before]
        for weight, g in zip(weights, before, strict=True):
            weight.grad = numbers([g])
        close(clip_gradients(weights, 1.0), norm)
        close(torch.cat([weight.grad for weight in weights]), after)


# ---- losses ----


def test_cross_entropy_and_label_smoothing():
    """Logits (ln 3, 0), the first is right: -ln 3/4 = 0.287682.

    A share of 0.2 goes evenly to both: the target is (0.9, 0.1), the loss 0.9 0.287682 + 0.1 1.386294 = 0.397543.
    """
    task, logits, batch = Classification(["a", "b"], "cls"), numbers([[LN3, 0]]), batch_of((torch.zeros(1, 1),), torch.tensor([0]))
    close(task.loss(logits, batch), [0.287682])
    batch.smoothing = 0.2
    close(task.loss(logits, batch), [0.397543])


def test_binary_cross_entropy():
    """Logits 0 and ln 3: probabilities 1/2 and 3/4. The row has the first label alone: -ln 1/2 - ln 1/4 = 0.693147 + 1.386294.

    Having the first label weighs 3: 3 0.693147 + 1.386294 = 3.465736.
    """
    task = MultiLabelClassification(["a", "b"], "cls", max_length=8, pairs=False, thresholds=[0.5, 0.5], tuning="fixed", tuned_on=0)
    logits, batch = numbers([[0, LN3]]), batch_of((torch.zeros(1, 1),), torch.tensor([[True, False]]))
    close(task.loss(logits, batch), [2.079442])
    batch.weights = numbers([3, 3])
    close(task.loss(logits, batch), [3.465736])


def test_masked_language_modelling():
    """Four words. Masked first: logits 0, so -ln 1/4 = 1.386294. Masked second: (ln 5, 0, 0, 0), the first is right: -ln 5/8 =
    0.470004. The third place is none. Mean 1.856298 / 2, perplexity e^0.928149 = sqrt(4 8/5) = 2.529822."""
    logits = torch.zeros(1, 3, 4, dtype=torch.float64)  # (B, M, V)
    logits[0, 1, 0] = math.log(5)
    found = losses(logits, torch.tensor([[2, 0, NO_LABEL]]))
    close(found, [[1.386294, 0.470004, 0]])
    close(math.exp(found.sum().item() / 2), 2.529822)


# ---- decoding and metrics ----


def test_viterbi():
    """Two words, tags O, B, I. Each for itself: O (0.6), I (0.7), and an I stands behind no O.

    Of the paths that the grammar allows, O O 0.6 0.2 = 0.12, O B 0.06, B O 0.08, B B 0.04, B I 0.4 0.7 = 0.28, the last is best.
    """
    log_p = np.log(np.array([[0.6, 0.4, 1e-9], [0.2, 0.1, 0.7]]))
    assert greedy(log_p) == [0, 2]
    path, total = viterbi(log_p, *grammar(["O", "B-X", "I-X"]))
    assert path == [1, 2]
    close(math.exp(total), 0.28)


def test_pearson_spearman_and_the_squared_error():
    """p = (1, 2, 3), t = (0, 0, 3): deviations (-1, 0, 1) and (-1, -1, 2), their products sum to 3, their squares to 2 and 6:
    3 / sqrt(12) = 0.866025. Ranks (1, 2, 3) and (1.5, 1.5, 3): deviations (-1, 0, 1) and (-0.5, -0.5, 1): 1.5 / sqrt(2 1.5).
    Squared errors 1, 4, 0: 5 / 3."""
    p, t = [1.0, 2.0, 3.0], [0.0, 0.0, 3.0]
    close(pearson(p, t), 0.866025)
    close(spearman(p, t), 0.866025)
    close(mean_squared_error(p, t), 1.666667)


def test_accuracy_f1_and_matthews():
    """Right and predicted, 6 rows: [[3, 1], [1, 1]]. Accuracy 4/6.

    F1 of the first 2 3 / (4 + 4), of the second 2 1 / (2 + 2): their mean 0.625. Matthews (3 1 - 1 1) / sqrt(4 4 2 2) = 2/8.
    """
    matrix = confusion_matrix(np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 0, 1]), 2)
    assert matrix.tolist() == [[3, 1], [1, 1]]
    found = classification_metrics(matrix)
    close([found["accuracy"], found["f1_macro"], found["matthews"]], [0.666667, 0.625, 0.25])
