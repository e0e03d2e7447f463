"""Method specs: parted, composed, their defaults."""

import os
import shutil

import pytest
import torch
from tiny import tiny_body, tiny_resnet

from minift.adapting import adapt, adapt_saved, default_epochs, default_lr, lr_factors, names_of, parse_methods, resolved, split
from minift.errors import UserError
from minift.methods import METHODS, dora, full, lora, prompt
from minift.methods.surgery import delta, load_delta, wrappers


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("lora", ["lora"]),
        ("prefix:length=3+lora:rank=2", ["prefix:length=3", "lora:rank=2"]),
        (r"lora:sites=layers\.[0-9]+\.attention\.query+ia3", [r"lora:sites=layers\.[0-9]+\.attention\.query", "ia3"]),
        (r"lora:sites=layers\.\d+.*query", [r"lora:sites=layers\.\d+.*query"]),
        ("lora+lora:sites=key", ["lora", "lora:sites=key"]),
        ("lora+nothing", ["lora+nothing"]),
        ("lora+../my methods/vera.py:vera:rank=3+ia3", ["lora", "../my methods/vera.py:vera:rank=3", "ia3"]),
        ("a.py:b+c.py:d+full", ["a.py:b", "c.py:d", "full"]),
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


# ---- what a run records ----


def named(body) -> list[str]:
    return sorted(f"{name}: {tuple(tensor.shape)}" for name, tensor in delta(body).items())


BODIES = {"bert": tiny_body, "resnet": tiny_resnet}


@pytest.mark.parametrize("make", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("spec", [*METHODS, "prefix:length=3+lora:rank=2,alpha=1e30", "ia3:sites=peft", "lora:sites=query/word"])
def test_a_resolved_spec_says_every_option_and_gives_the_same_surgery(spec, make):
    body, again = make(), make()
    try:
        adapt(body, spec)
    except UserError:
        pytest.skip(f"{spec}: not on this body")
    said = resolved(spec, make())
    assert resolved(spec, body) == said == resolved(said, body)
    adapt_saved(again, said)
    assert named(again) == named(body)
    assert names_of(said) == names_of(spec)


def test_the_resolved_options():
    assert resolved("lora", tiny_body()) == "lora:rank=8,alpha=16.0,dropout=0.0,rslora=False,sites=query/value,plus=1.0"
    assert resolved("lora:rank=2", tiny_resnet()) == "lora:rank=2,alpha=16.0,dropout=0.0,rslora=False,sites=conv2,plus=1.0"
    assert resolved("ia3:sites=peft", tiny_body()) == "ia3:sites=key/value/feed_forward_output/attention_output"
    assert resolved("bitfit+full", tiny_body()) == "bitfit+full:norms=train"


def test_expressions_become_the_names_that_they_match():
    spec = r"lora:sites=layers\.[02]\.attention\.query/word"
    said = resolved(spec, tiny_body())
    assert "sites=layers.0.attention.query/layers.2.attention.query/word," in said
    body, again = tiny_body(), tiny_body()
    adapt(body, spec)
    adapt_saved(again, said)
    assert named(again) == named(body) and len(wrappers(body)) == 3


@pytest.mark.parametrize("sites", ["(([a-z0-9.]+)+)+X", "layers.*query", "query/layers.9.attention.query"])
def test_no_expression_of_a_saved_run_is_compiled(sites):
    body = tiny_body()
    with pytest.raises(UserError, match=r"^--method lora:sites=.*: a saved run names roles or modules") as error:
        adapt_saved(body, f"lora:sites={sites}")
    assert "\n" not in str(error.value) and not wrappers(body)


def test_names_with_escaped_dots_are_names():
    """As runs that came from peft, or were combined, recorded them."""
    body = tiny_body()
    adapt_saved(body, r"lora:sites=layers\.0\.attention\.query|layers\.1\.attention\.key")
    assert list(wrappers(body)) == ["layers.0.attention.query", "layers.1.attention.key"]


@pytest.mark.parametrize("spec", [*METHODS, "prefix:mlp=3", "prompt:init=random", "houlsby:init=houlsby"])
def test_the_surgery_of_a_saved_run_draws_no_random_number(spec):
    body = tiny_body()
    before = torch.random.get_rng_state()
    adapt_saved(body, spec)
    assert torch.equal(torch.random.get_rng_state(), before)
    load_delta(body, {name: tensor.detach() for name, tensor in delta(body).items()})
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- learning rates by parameter ----


def test_factors_on_learning_rates():
    assert lr_factors("lora") == lr_factors("full") == lr_factors("houlsby+ia3") == {}
    assert lr_factors("lora:plus=16") == lr_factors("prefix+dora:plus=16.0") == {"B": 16.0}
    assert lr_factors("lora:plus=4+lora:sites=key,plus=4") == {"B": 4.0}
    with pytest.raises(UserError, match=r"plus=1 and plus=4 for the same parameters B$"):
        lr_factors("lora:plus=4+dora:sites=key")
    for value in ("0", "-1", "nan", "inf"):
        with pytest.raises(UserError, match="alpha and plus are above 0"):
            adapt(tiny_body(), f"lora:plus={value}")


# ---- a method in a file of the user's ----

SCALED = '''"""A learned factor for each channel behind a LayerNorm."""

import torch
from torch import nn

from minift.methods.surgery import Wrapper, find, wrap

EPOCHS = 7
STARTS_AS_PRETRAINED = True


def lr(optimizer, width):
    return 5e-3


class Scaled(Wrapper):
    def __init__(self, base, start):
        super().__init__(base)
        self.g = nn.Parameter(torch.full_like(base.weight, start))

    def forward(self, x):
        return self.base(x) * self.g


def norm_scale(body, *, start: float = 1.0, sites: str = ""):
    """A learned scale."""
    wrap(body, find(body, sites, ("attention_norm",)), lambda norm: Scaled(norm, start))
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "scaled.py"
    path.write_text(SCALED)
    return path


def test_a_method_in_a_file(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    spec = "scaled.py:norm_scale:start=2+lora:rank=2"
    method, _ = parse_methods(spec, typed=True)
    assert method.keywords == {"start": 2.0} and names_of(spec) == "norm_scale+lora"
    assert default_epochs(spec) == 10 and default_lr(spec, "adamw", 768) == 5e-4
    assert default_epochs("scaled.py:norm_scale") == 7 and default_lr("scaled.py:norm_scale", "adamw", 768) == 5e-3
    body, again = tiny_body(), tiny_body()
    adapt(body, spec)
    said = resolved(spec, body)
    assert said.startswith(f"{file}:norm_scale:start=2.0,sites=+lora:rank=2,") and names_of(said) == names_of(spec)
    monkeypatch.chdir("/")
    adapt_saved(again, said)
    assert named(again) == named(body) and "layers.0.attention_norm.g" in delta(body)


def test_a_file_that_a_run_names_is_run_only_where_the_user_allows_it(file, tmp_path, monkeypatch):
    """Code must not run because a config.json of somebody else's says so."""
    spec = f"{file}:norm_scale"
    with pytest.raises(UserError, match=rf"^--method {file}: a file of code, .* set MINIFT_METHODS={file}$"):
        adapt_saved(tiny_body(), spec)
    monkeypatch.setenv("MINIFT_METHODS", os.pathsep.join(["/nowhere.py", str(file)]))
    body = tiny_body()
    adapt_saved(body, spec)
    assert len(wrappers(body)) == 3
    copy = tmp_path / "other.py"
    shutil.copy(file, copy)
    with pytest.raises(UserError, match="a file of code"):
        adapt(tiny_body(), f"{copy}:norm_scale")


FILES = {
    "is not there": ("missing.py:norm_scale", None, "missing.py: no such file; it holds the code of the method"),
    "has no such function": ("scaled.py:scale", SCALED, "scaled.py defines no function scale"),
    "has no such option": ("scaled.py:norm_scale:strat=1", SCALED, "'strat=1' is no option of norm_scale"),
    "has no lr": ("scaled.py:norm_scale", SCALED.replace("def lr(", "def rate("), "defines lr too; see"),
    "lies where a spec cannot say": ("a+b/scaled.py:norm_scale", SCALED, "'a' is not known"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that(case, tmp_path, monkeypatch):
    spec, text, said = FILES[case]
    monkeypatch.chdir(tmp_path)
    if text:
        (tmp_path / "scaled.py").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        parse_methods(spec, typed=True)
    assert "\n" not in str(error.value)


def test_a_directory_whose_name_a_spec_cannot_hold(tmp_path, monkeypatch):
    (tmp_path / "a,b").mkdir()
    (tmp_path / "a,b" / "scaled.py").write_text(SCALED)
    monkeypatch.chdir(tmp_path / "a,b")
    with pytest.raises(UserError, match="has a plus, a comma or a colon in its path; move the file"):
        parse_methods("scaled.py:norm_scale", typed=True)
