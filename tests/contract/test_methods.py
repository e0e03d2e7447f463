"""What every method promises on every model, found from the table METHODS; a broken promise is said with the method's name."""

import copy
import inspect
import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from contract.bodies import (
    MODELS,
    SPECS,
    changed,
    classifier,
    copied,
    distance,
    loss_of,
    module_of,
    operated,
    outputs,
    plain_body,
    randomise,
    refusal,
    same,
    shape,
    train,
    trained,
)
from safetensors.torch import load_file, save_file

from minift.errors import look_up
from minift.methods import METHODS, surgery
from minift.methods.surgery import delta, freeze, load_delta, merge, plain_name, unmerge, wrappers
from minift.optim import OPTIMIZERS, precision
from minift.optim.groups import make_groups
from minift.printing import print_model
from minift.specs import options_of

every = pytest.mark.parametrize("model", MODELS)
method = pytest.mark.parametrize("spec", SPECS)


def says_no(act: Callable[[], None]) -> str | None:
    """What a ValueError said in one line; None where there was none."""
    return refusal(lambda _: act(), None)


# ---- what a method's file says ----


@pytest.mark.parametrize("name", METHODS)
def test_the_file_says_what_the_command_line_asks(name):
    module, function = module_of(name), look_up(METHODS, name, "--method")
    assert module.__doc__, f"{name}: its file has no docstring"
    assert isinstance(module.EPOCHS, int) and module.EPOCHS > 0, f"{name}: EPOCHS is {module.EPOCHS}"
    assert isinstance(module.STARTS_AS_PRETRAINED, bool), f"{name}: STARTS_AS_PRETRAINED is {module.STARTS_AS_PRETRAINED}"
    for optimizer in OPTIMIZERS:
        assert 0 < module.lr(optimizer, 384) < 1, f"{name}: lr() of {optimizer} is {module.lr(optimizer, 384)}"
    lines = inspect.getdoc(function).splitlines()
    assert lines[0].endswith(".") and " " in lines[0], f"{name}: {lines[0]!r} is no sentence"
    said = f"{inspect.getdoc(function)}\n{module.__doc__}"
    for option in options_of(function):
        mentioned = re.search(rf"\b{option}\b", said)
        assert mentioned, f"{name}: option {option} is mentioned neither in the function's docstring nor in the file's"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_one_of_the_models(name):
    said = {}
    for model in MODELS:
        body = plain_body(model)
        freeze(body)
        said[model] = refusal(look_up(METHODS, name, "--method"), body)
    assert None in said.values(), f"{name} takes no model: {said}"


# ---- the start ----


@every
@method
def test_start(spec, model):
    gap = distance(outputs(operated(spec, on=model), model), outputs(plain_body(model), model))
    if module_of(spec).STARTS_AS_PRETRAINED:
        assert gap <= 1e-12, f"{spec} on {model}: starts {gap:.1e} away from the pretrained model and says that it does not"
    else:
        assert 1e-3 < gap < float("inf"), (
            f"{spec} on {model}: starts {gap:.1e} away from the pretrained model and says it is another"
        )


# ---- frozen is frozen, trained is trained ----


@every
@method
def test_frozen_tensors_stand_still_and_trained_ones_move(spec, model):
    body = operated(spec, on=model)
    own, moving = delta(body), set(trained(body))
    before = copied(body)
    train(classifier(body), model)
    moved = {plain_name(name) for name in changed(body, before)}
    for name in moved - own.keys():
        pytest.fail(f"{spec} on {model}: the frozen tensor {name} moved")
    for name in moving - moved:
        pytest.fail(f"{spec} on {model}: {name} trains and did not move")


@every
@method
def test_gradients_are_exactly_where_something_trains(spec, model):
    """Of a key's bias the gradient is 0 but for rounding: a softmax does not change when all its scores do."""
    task_model = classifier(randomise(operated(spec, on=model))).train()
    loss_of(task_model, model).backward()
    for name, parameter in task_model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{spec} on {model}: {name} trains and has no gradient"
            assert parameter.grad.any(), f"{spec} on {model}: {name} trains and its gradient is 0"
            assert parameter.grad.isfinite().all(), f"{spec} on {model}: the gradient of {name} is not finite"
        else:
            assert parameter.grad is None, f"{spec} on {model}: {name} is frozen and has a gradient"


@every
@method
def test_what_is_wrapped_does_not_train_itself(spec, model):
    """A method trains what it adds to a layer, or the layer."""
    for name, wrapper in wrappers(operated(spec, on=model)).items():
        for leaf, parameter in surgery.plain(wrapper).named_parameters(recurse=False):
            assert not parameter.requires_grad, f"{spec} on {model}: it wraps {name}, and {name}.{leaf} trains too"


@every
@method
def test_the_table_counts_what_trains(spec, model, capsys):
    body = operated(spec, on=model)
    task_model = classifier(body)
    optimizer = SimpleNamespace(groups=make_groups(task_model, 1e-3, 0.1))
    start = SimpleNamespace(place=None, checkpoint=SimpleNamespace(source="a test", task=None))
    print_model(SimpleNamespace(model=task_model, optimizer=optimizer, new=()), start, SimpleNamespace(accumulate=1))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (total,) = (row for row in rows if row[:1] == ["total"])
    printed = [int(number.replace(",", "")) for number in total[1:]]
    head = sum(p.numel() for p in task_model.head.parameters())
    trains = sum(p.numel() for p in task_model.parameters() if p.requires_grad)
    assert printed == [sum(p.numel() for p in task_model.parameters()), trains], f"{spec} on {model}: the table says {printed}"
    of_delta = sum(p.numel() for p in trained(body).values())
    assert of_delta + head == trains, f"{spec} on {model}: delta has {of_delta} of {trains - head} numbers that train"


@every
@method
def test_names_are_those_of_the_plain_model(spec, model):
    body, plain = operated(spec, on=model), plain_body(model).state_dict()
    for name in delta(body):
        assert surgery.SEGMENT not in name.split("."), f"{spec} on {model}: {name} is no name of the plain model"
    lost = plain.keys() - {plain_name(name) for name in body.state_dict()}
    assert not lost, f"{spec} on {model}: {lost} of the plain model are gone"


# ---- delta ----


@every
@method
def test_delta_round_trip(spec, model, tmp_path):
    body = operated(spec, on=model)
    train(classifier(body), model)
    save_file({name: tensor.detach() for name, tensor in delta(body).items()}, tmp_path / "delta.safetensors")
    other = operated(spec, on=model, seed=1)
    switched_on = set(trained(other))
    load_delta(other, load_file(tmp_path / "delta.safetensors"))
    assert same(outputs(other, model), outputs(body, model)), f"{spec} on {model}: a body with the saved delta gives something else"
    assert set(trained(other)) == switched_on, f"{spec} on {model}: other tensors train once the delta is loaded"
    train(classifier(other), model, steps=1)
    assert bool(switched_on) != same(outputs(other, model), outputs(body, model)), (
        f"{spec} on {model}: a loaded delta does not train"
    )


def without_first(tensors: dict) -> dict:
    return dict(list(tensors.items())[1:])


def with_another(tensors: dict) -> dict:
    return {**tensors, "layers.0.another.weight": torch.zeros(2)}


def misshapen(tensors: dict) -> dict:
    name, tensor = list(tensors.items())[-1]
    return {**tensors, name: tensor.new_zeros(*tensor.shape, 2)}


@every
@method
@pytest.mark.parametrize("spoil", [without_first, with_another, misshapen])
def test_a_delta_that_does_not_fit_is_refused_and_changes_nothing(spec, model, spoil):
    body = operated(spec, on=model)
    tensors = {name: tensor.detach() + 1 for name, tensor in delta(body).items()}
    if not tensors and spoil is not with_another:
        pytest.skip(f"{spec} on {model}: its delta is empty")
    before, built = copied(body), shape(body)
    said = says_no(lambda: load_delta(body, spoil(tensors)))
    assert said, f"{spec} on {model}: took a delta that is {spoil.__name__}"
    assert not changed(body, before), f"{spec} on {model}: refused a delta, and {changed(body, before)[:1]} changed"
    assert shape(body) == built, f"{spec} on {model}: refused a delta, and its parameters are others"


@every
@method
def test_loading_a_delta_leaves_a_body_of_the_same_tensors_alone(spec, model):
    """Two adapted bodies may hold one base; its tensors are the plain body's own."""
    plain = plain_body(model)
    before, held = copied(plain), {tensor.data_ptr() for tensor in plain.state_dict().values()}
    sharing = plain_body(model)
    sharing.load_state_dict(plain.state_dict(), assign=True)
    operated(spec, on=model, body=sharing)
    load_delta(sharing, {name: tensor.detach() + 1 for name, tensor in delta(sharing).items()})
    assert not changed(plain, before), f"{spec} on {model}: load_delta wrote into {changed(plain, before)[:1]} of another body"
    own = delta(sharing)
    for name, tensor in sharing.state_dict().items():
        assert (tensor.data_ptr() in held) != (plain_name(name) in own), f"{spec} on {model}: is {name} shared or the body's own?"


# ---- merge ----


@every
@method
def test_merge_and_unmerge(spec, model):
    body = randomise(operated(spec, on=model))
    keys = plain_body(model).state_dict().keys()
    before, built = outputs(body, model), shape(body)
    wrapped: dict = {}
    said = says_no(lambda: wrapped.update(merge(body)))
    if said:
        assert shape(body) == built, f"{spec} on {model}: cannot be merged, and was changed"
        assert same(outputs(body, model), before), (
            f"{spec} on {model}: cannot be merged, and gives something else after the attempt"
        )
        return
    assert body.state_dict().keys() == keys, f"{spec} on {model}: merged, its names are not those of the plain model"
    gap = distance(outputs(body, model), before)
    assert gap <= 1e-10, f"{spec} on {model}: merged, it is {gap:.1e} away from what it was"
    plain = plain_body(model)
    plain.load_state_dict(body.state_dict())
    assert same(outputs(plain, model), outputs(body, model)), f"{spec} on {model}: a plain body of the merged weights gives another"
    unmerge(body, wrapped)
    assert same(outputs(body, model), before), f"{spec} on {model}: unmerged, it is not what it was"
    assert shape(body) == built, f"{spec} on {model}: unmerged, its modules or parameters are others"


@every
@method
@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)], ids=["bfloat16", "float16"])
def test_merging_a_low_precision_body_rounds_once(spec, model, dtype, bits):
    """Within half a unit in the last place of the float64 result, and what float32 costs on the way."""
    body = randomise(operated(spec, on=model, dtype=dtype))
    exact = copy.deepcopy(body).double()
    if says_no(lambda: merge(exact)):
        pytest.skip(f"{spec} on {model}: cannot be merged")
    merge(body)
    wanted = exact.state_dict()
    for name, tensor in body.state_dict().items():
        if not tensor.is_floating_point():
            continue
        assert tensor.dtype == dtype, f"{spec} on {model}: merged, {name} is {tensor.dtype}"
        half = torch.ldexp(torch.ones_like(wanted[name]), wanted[name].frexp().exponent - bits - 1)
        slack = 1e-6 * wanted[name].abs().max()
        over = ((tensor.double() - wanted[name]).abs() - half - slack).max()
        assert over <= 0, f"{spec} on {model}: merged in {dtype}, {name} is {float(over):.1e} beyond one rounding"


# ---- copies ----


@every
@method
def test_a_copy_is_equal_and_independent(spec, model):
    body = randomise(operated(spec, on=model))
    twin = copy.deepcopy(body)
    before, tensors = outputs(body, model), copied(body)
    assert same(outputs(twin, model), before), f"{spec} on {model}: a copy gives something else"
    train(classifier(twin), model)
    assert not changed(body, tensors), (
        f"{spec} on {model}: a copy was trained, and {changed(body, tensors)[:1]} of the original moved"
    )
    assert same(outputs(body, model), before), f"{spec} on {model}: a copy was trained, and the original gives something else"
    for name, parameter in body.named_parameters():
        assert parameter.grad is None, f"{spec} on {model}: a copy was trained, and {name} of the original has a gradient"
    if trained(body):
        assert not same(outputs(twin, model), before), f"{spec} on {model}: a copy does not train"
    twin.eval()
    body.train()
    assert not any(m.training for m in twin.modules()), f"{spec} on {model}: train() of the original reaches the copy"


@every
@method
def test_state_dict_reload(spec, model):
    body = operated(spec, on=model)
    train(classifier(body), model)
    other = operated(spec, on=model, seed=1)
    other.load_state_dict(body.state_dict(), strict=True)
    assert same(outputs(other, model), outputs(body, model)), f"{spec} on {model}: with the state dict of another it gives another"


# ---- precision ----


def plain_attributes(body) -> list[str]:
    """Tensors that are attributes of a module, alone or in a list, and neither parameters nor buffers."""
    return [
        f"{plain_name(name)}: {type(module).__name__}.{attribute}"
        for name, module in body.named_modules()
        for attribute, value in vars(module).items()
        if any(isinstance(one, torch.Tensor) for one in (value if isinstance(value, list | tuple) else (value,)))
    ]


def moves(body, model: str) -> str | None:
    """What is wrong with a float32 body once it has become float64."""
    stray = ", ".join(plain_attributes(body))
    try:
        after = outputs(body.double(), model)
    except RuntimeError as error:
        return f"it does not run ({error}); plain tensors: {stray or 'none found as attributes'}"
    if stray:
        return f"a plain tensor does not move with the body: {stray}; make it a parameter or a buffer"
    return None if all(y.dtype == torch.float64 for y in after) else "its outputs are not float64"


@every
@method
def test_everything_moves_with_the_body(spec, model):
    """To another dtype, as to another device."""
    said = moves(operated(spec, on=model, dtype=torch.float32), model)
    assert said is None, f"{spec} on {model}: operated in float32, then made float64: {said}"


class Stray(surgery.Wrapper):
    def __init__(self, base, attribute: str, value):
        super().__init__(base)
        self.attribute = attribute
        setattr(self, attribute, value)

    def forward(self, x):
        value = getattr(self, self.attribute)
        return self.base(x) @ (value[0] if isinstance(value, list) else value)


@pytest.mark.parametrize("value", [torch.eye(48), [torch.eye(48)]], ids=["alone", "in a list"])
def test_a_plain_tensor_is_found_by_its_name(value):
    body = plain_body("bert", torch.float32)
    surgery.wrap(body, surgery.find(body, "query"), lambda layer: Stray(layer, "matrix", value))
    assert "layers.0.attention.query: Stray.matrix" in moves(body, "bert")


@every
@method
def test_bfloat16(spec, model):
    """Of the hidden states, and with few layers: in a deep random network roundings add up, with or without a method."""
    body = randomise(operated(spec, on=model, dtype=torch.float32, **MODELS[model].shallow))
    wanted, _ = outputs(body, model, torch.float32)
    with precision.autocast(torch.bfloat16):
        low, _ = outputs(body, model, torch.float32)
    gap = distance((low,), (wanted,)) / float(wanted.abs().max())
    assert gap < 2e-2, f"{spec} on {model}: in bfloat16 it is {gap:.1e} of the largest output away from float32"
    assert gap > 0, f"{spec} on {model}: bfloat16 changes nothing, so nothing ran in it"
