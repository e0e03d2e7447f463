"""Method specs: parted, composed, their defaults."""

import pytest
from tiny import tiny_body

from minift.adapting import adapt, default_epochs, default_lr, names_of, split
from minift.errors import UserError
from minift.methods import dora, full, lora, prompt
from minift.methods.surgery import wrappers


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("lora", ["lora"]),
        ("prefix:length=3+lora:rank=2", ["prefix:length=3", "lora:rank=2"]),
        (r"lora:sites=layers\.[0-9]+\.attention\.query+ia3", [r"lora:sites=layers\.[0-9]+\.attention\.query", "ia3"]),
        (r"lora:sites=layers\.\d+.*query", [r"lora:sites=layers\.\d+.*query"]),
        ("lora+lora:sites=key", ["lora", "lora:sites=key"]),
        ("lora+nothing", ["lora+nothing"]),
    ],
)
def test_a_plus_parts_methods_and_not_regular_expressions(spec, parts):
    assert split(spec) == parts


def test_several_take_the_lowest_rate_and_the_most_epochs():
    spec = "prompt:length=3+full+dora"
    assert names_of(spec) == "prompt+full+dora"
    assert default_lr(spec, "adamw", 768) == min(m.lr("adamw", 768) for m in (prompt, full, dora)) == full.lr("adamw", 768)
    assert default_epochs(spec) == max(m.EPOCHS for m in (prompt, full, dora))


def test_the_same_method_at_other_sites_and_twice_at_one():
    body = tiny_body()
    adapt(body, "lora+lora:sites=key")
    assert len(wrappers(body)) == 9 and all(type(w) is lora.LoRA for w in wrappers(body).values())
    with pytest.raises(UserError, match=r"^--method lora: layers\.0\.attention\.query: LoRA is there already, .*$"):
        adapt(tiny_body(), "lora+lora")
