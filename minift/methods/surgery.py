"""The verbs that methods are written in, freeze, thaw, wrap; and for the result: merge, unmerge, delta, load_delta.

`freeze` switches a whole body off; a method then thaws, or wraps, what it trains. From then on `requires_grad` says what is
trained: it is what is counted, grouped for the optimiser, stepped and saved. Whatever is wrapped keeps the dotted name that it has
in the plain model: the segment of a wrapper is left out wherever a name is shown or saved.

What a wrapper adds is saved where it is a parameter, or a buffer with persistent=True. A buffer with persistent=False is not: it
must be computed again from the options, with a generator of its own. Plain tensor attributes are not moved to another device or
dtype, so there must be none. State that several wrappers share is a module that the first of them registers; all of them hold it
as `Shared(module)`, so that each tensor has one name. prefix.py is the example.
Proved by tests/methods/test_surgery.py, and for every method by tests/contract/.
"""

import copy
import difflib
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

SEGMENT = "_wrapped"  # of a dotted name: what a wrapper calls the module inside; no model calls one of its modules so


class Wrapper(nn.Module):
    """A module of the plain model, whole as `self.base`, and beside it what a method adds.

    A wrapper that a plain layer can stand for defines `merged`; any other says in `unmergeable` why not. Its `forward` calls
    `self.base`, with what the module that it wraps is called with.
    """

    unmergeable = "it is no change of a weight"
    lengthens = 0  # positions that it takes before those of the text

    def __init__(self, base: nn.Module):
        super().__init__()
        self.add_module(SEGMENT, base)

    @property
    def base(self) -> nn.Module:
        return self._modules[SEGMENT]

    def term(self) -> Tensor | None:
        """A scalar that is added to the loss once a step, whatever the batch, say AdaLoRA's orthogonality; None: nothing."""
        return None

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the plain layer that does what this one does, given those of `base`, in their dtype."""
        raise ValueError(f"{type(self).__name__} cannot be merged: {self.unmergeable}")


class Shared:
    """A module that several wrappers call and one of them registers. It is no module itself, so nothing is registered twice."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, *inputs):
        return self.module(*inputs)


# ---- freeze, thaw ----


def freeze(body: nn.Module) -> None:
    """Nothing in `body` trains. What does not train stands still, whatever `train()` says: see models/body.py."""
    body.requires_grad_(False)
    body.train(body.training)


def thaw(module: nn.Module) -> None:
    """Everything in `module` trains."""
    module.requires_grad_(True)


def trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def from_lowest(body: nn.Module) -> list[nn.Module]:
    """The modules of `body.walk()`, from the lowest that trains upwards."""
    modules = list(body.walk())
    return modules[next((i for i, module in enumerate(modules) if trains(module)), len(modules)) :]


def lengthened(body: nn.Module) -> int:
    """How many positions of the model the wrappers take before the text's own: each says so in `lengthens`."""
    return sum(module.lengthens for module in body.modules() if isinstance(module, Wrapper))


def terms(body: nn.Module) -> Tensor | None:
    """The sum of what the wrappers add to the loss; None where none does."""
    found = [term for module in body.modules() if isinstance(module, Wrapper) and (term := module.term()) is not None]
    return sum(found[1:], found[0]) if found else None


# ---- sites, wrap ----


def plain(module: nn.Module) -> nn.Module:
    """The module of the plain model inside all wrappers."""
    while isinstance(module, Wrapper):
        module = module.base
    return module


def plain_name(name: str) -> str:
    """The dotted name that a module or a tensor has in the plain model."""
    return ".".join(part for part in name.split(".") if part != SEGMENT)


def plain_modules(body: nn.Module, name: str = "") -> dict[str, nn.Module]:
    """Every module of the plain model under its dotted name; where it is wrapped, with the wrappers. What they add is left out."""
    found = {name: body} if name else {}
    for child_name, child in plain(body).named_children():
        found |= plain_modules(child, f"{name}.{child_name}" if name else child_name)
    return found


def wrappers(body: nn.Module) -> dict[str, Wrapper]:
    """What is wrapped, under the plain model's names: the outermost wrapper of each."""
    return {name: module for name, module in plain_modules(body).items() if isinstance(module, Wrapper)}


def find(body: nn.Module, sites: str, defaults: tuple[str, ...] = ()) -> dict[str, nn.Module]:
    """The modules at the sites, under their dotted names in the plain model.

    sites: roles of `body.SITES`, names of modules, or regular expressions that such a name matches in full, joined by `/`; empty:
    the first of `defaults` whose roles this body has. Raises ValueError where one of them finds nothing.
    """
    modules, found = plain_modules(body), {}
    for site in (sites or default_sites(body, defaults)).split("/"):
        if not site:
            raise ValueError(f"sites={sites}: a role or a regular expression is expected before and behind every /")
        names = literals(site)
        if site in body.SITES or not names <= modules.keys():
            try:
                pattern = re.compile(body.SITES.get(site, site))
            except re.error as error:
                raise ValueError(f"sites={site}: no regular expression ({error})") from None
            names = {name for name in modules if pattern.fullmatch(name)}
        if not names:
            near = difflib.get_close_matches(site, list(dict.fromkeys([*body.SITES, *modules])), 3, 0.5)
            meant = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(f"sites={site}: no module has such a name; {meant}known roles are {', '.join(body.SITES)}")
        found |= {name: module for name, module in modules.items() if name in names}
    return found


def default_sites(body: nn.Module, defaults: tuple[str, ...]) -> str:
    """The first of `defaults` whose roles this body has."""
    for roles in defaults:
        if set(roles.split("/")) <= body.SITES.keys():
            return roles
    places = " or ".join(roles.replace("/", " and ") for roles in defaults)
    raise ValueError(f"it belongs at {places}, and {type(body).__name__} has no such place")


def literals(site: str) -> set[str]:
    """What a site names if it is no more than names of modules joined by `|`, their dots escaped or not."""
    return set(site.replace(r"\.", ".").split("|"))


def is_literal(body: nn.Module, site: str) -> bool:
    """Whether a site is a role or names modules, so that no regular expression is compiled for it."""
    return site in body.SITES or literals(site) <= plain_modules(body).keys()


def literal_sites(body: nn.Module, sites: str, defaults: tuple[str, ...]) -> str:
    """The same sites without a regular expression: each a role, or the names of the modules that it matches."""
    sites = sites or (default_sites(body, defaults) if defaults else "")
    return "/".join(site if site in body.SITES else "/".join(find(body, site)) for site in sites.split("/") if sites)


def wrap(body: nn.Module, sites: dict[str, nn.Module], make: Callable[[nn.Module], Wrapper]) -> None:
    """Put `make(module)` in the place of every module of `sites`, as `find` gives them: of all, or of none.

    Raises ValueError as `make` does, and where a tensor that a wrapper adds would have the name of another: of one that an earlier
    wrapper of the module has, as both would change the same thing, or of one of the plain model.
    """
    made, taken = {}, {plain_name(name) for name, _ in all_tensors(body)}
    for name, module in sites.items():
        try:
            made[name] = make(module)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        inner, new = module, own_names(made[name])
        while isinstance(inner, Wrapper):
            if both := own_names(inner) & new:
                there, here, both = type(inner).__name__, type(made[name]).__name__, ", ".join(sorted(both))
                raise ValueError(f"{name}: {there} is there already, and {here} has {both} as well; a site takes one of them")
            inner = inner.base
        if both := {leaf for leaf in new if f"{name}.{leaf}" in taken}:
            raise ValueError(f"{name} has a {min(both)} of its own; what a wrapper adds must be called otherwise")
        taken |= {f"{name}.{leaf}" for leaf in new}
    for name, wrapper in made.items():
        put(body, name, wrapper)


def all_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer under each name that it is registered by."""
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def own_names(wrapper: Wrapper) -> set[str]:
    """Dotted names of the tensors that a wrapper adds, counted from it."""
    return {name for name, _ in all_tensors(wrapper) if not name.startswith(SEGMENT + ".")}


def check_tensors(body: nn.Module) -> None:
    """What the surgery owes to everything that follows: each tensor has one name, which a stage holds. For authors of methods.

    Raises ValueError with the name of a tensor that is registered twice, as itself or as another of the same memory, or outside
    of every stage.
    """
    way = "state that layers share is a module of the first wrapper that uses it, and the others hold surgery.Shared(module)"
    prefixes = tuple(name + "." for names in body.stages.values() for name in names)
    seen = {}
    for name, tensor in all_tensors(body):
        name = plain_name(name)
        if not name.startswith(prefixes):
            raise ValueError(f"{name} belongs to no stage of the body; {way}")
        key = (tensor.data_ptr(), tensor.shape) if tensor.device.type != "meta" and tensor.numel() else id(tensor)
        if key in seen:
            raise ValueError(f"{name} is the same tensor as {seen[key]}; {way}")
        seen[key] = name


def put(body: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(plain(plain_modules(body)[parent]) if parent else body, child, module)


# ---- merge, unmerge ----


def mergeable(body: nn.Module) -> bool:
    """Whether plain layers can stand for all that is wrapped."""
    return all(type(m).merged is not Wrapper.merged for m in body.modules() if isinstance(m, Wrapper))


def merge(body: nn.Module) -> dict[str, Wrapper]:
    """Replace every wrapped layer by a plain one that does the same; returns what was there, for `unmerge`.

    Weights are computed in float32 or wider and rounded once, to the type of the layer's. Raises ValueError, and changes nothing,
    where a wrapper cannot be merged.
    """
    wrapped = wrappers(body)
    layers = {name: merged_layer(wrapper) for name, wrapper in wrapped.items()}
    for name, layer in layers.items():
        put(body, name, layer)
    return wrapped


@torch.no_grad()
def merged_layer(wrapper: Wrapper) -> nn.Module:
    chain = [wrapper]
    while isinstance(chain[-1], Wrapper):
        chain.append(chain[-1].base)
    layer = chain.pop()
    if not isinstance(getattr(layer, "weight", None), Tensor):
        wrapper.merged(torch.empty(0), None)  # says why not
        raise ValueError(f"{type(wrapper).__name__} cannot be merged: {type(layer).__name__} has no weight")
    dtype = layer.weight.dtype
    wide = torch.promote_types(dtype, torch.float32)
    bias = getattr(layer, "bias", None)
    weight, bias = layer.weight.to(wide), None if bias is None else bias.to(wide)
    for one in reversed(chain):
        weight, bias = one.merged(weight, bias)
    layer = copy.copy(layer)  # shares what does not change
    layer._parameters = dict(layer._parameters)
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return layer


def unmerge(body: nn.Module, wrapped: dict[str, Wrapper]) -> None:
    """Put back what `merge` took out: the same tensors, so the same bits."""
    for name, wrapper in wrapped.items():
        put(body, name, wrapper)


# ---- delta ----


def plain_tensors(body: nn.Module) -> dict[str, Tensor]:
    """The state dict, the body's own tensors, under the plain model's names."""
    tensors = {}
    for name, tensor in body.state_dict(keep_vars=True).items():
        assert plain_name(name) not in tensors, f"two tensors would be saved as {plain_name(name)}"
        tensors[plain_name(name)] = tensor
    return tensors


def delta(body: nn.Module) -> dict[str, Tensor]:
    """What the method trains or adds, under the plain model's names: all that a run must save besides its base.

    Ask after the surgery, before unfreezing switches anything off; the tensors are the body's own.
    """
    tensors = plain_tensors(body)
    of_plain_model = {f"{name}.{leaf}" for name, module in plain_modules(body).items() for leaf in own_tensors(plain(module))}
    trained = {name for name, tensor in tensors.items() if tensor.requires_grad}
    added_by_wrappers = tensors.keys() - of_plain_model
    moving_statistics = {
        plain_name(f"{name}.{leaf}")
        for name, module in body.named_modules()
        if isinstance(module, _BatchNorm) and module.affine and module.weight.requires_grad
        for leaf in own_tensors(module)
    }
    saved = trained | added_by_wrappers | moving_statistics
    return {name: tensor for name, tensor in tensors.items() if name in saved}


def own_tensors(module: nn.Module) -> list[str]:
    return [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]


def load_delta(body: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a body on which the same surgery was done the tensors of `delta`; what it shares with other bodies is not written to.

    Raises ValueError where names or shapes are not those that `delta` gives here.
    """
    expected = delta(body)
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    shaped = [name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape]
    for names, what in ((missing, "missing"), (unexpected, "unexpected"), (shaped, "of another shape")):
        if names:
            raise ValueError(f"{len(names)} tensors are {what}, the first is {names[0]}")
    names = {name: plain_name(name) for name in body.state_dict()}
    own = {name: tensors[ours].detach().to(expected[ours], copy=True) for name, ours in names.items() if ours in tensors}
    body.load_state_dict(own, strict=False, assign=True)
