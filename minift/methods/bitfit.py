"""BitFit (Ben Zaken et al. 2022, arXiv:2106.10199, section 3): the biases train and nothing else.

Those of the norms count; of a ResNet, whose convolutions have none, they are all there are, and statistics stand still, as the
weights of the BatchNorms do not train. Differs from the paper in nothing. Proved by tests/methods/test_bitfit.py.
"""

from torch import nn

EPOCHS = 10
STARTS_AS_PRETRAINED = True


def lr(optimizer: str, width: int) -> float:
    """SGD: 1e-1. AdamW: 1e-3 (Ben Zaken et al. 2022, section 4: 1e-4 to 1e-3)."""
    return 1e-1 if optimizer == "sgd" else 1e-3


def bitfit(body: nn.Module) -> None:
    """The biases train."""
    for name, parameter in body.named_parameters():
        if name.rpartition(".")[2] == "bias":
            parameter.requires_grad_(True)
