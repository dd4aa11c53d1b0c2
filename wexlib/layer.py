"""An excited layer: torch's parametrized module, and what that lacks.

``torch.nn.utils.parametrize`` gives a module a class of its own, with a property for the tensor.
Here that class learns more:

* a copy gets a class of its own (torch's copies share one, and lose the property together);
* ``precompute`` can lend it the tensor;
* the ``state_dict``'s metadata say what excites the tensor, and another excitation's ``state_dict``
  is refused; a plain layer's is loaded into the stored tensor;
* ``reset_parameters`` and the function of ``model.apply`` reach the stored tensor; assigning is
  refused, and a write that reached what was computed is, at the next look.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wexlib.names import compare, note
from wexlib.ops.capture import capturing
from wexlib.ops.loops import recorded
from wexlib.parametrization import Parametrization


class Lent(threading.local):
    """What ``precompute`` computed, in this thread."""

    def __init__(self):
        self.tensors: dict[ExcitedTensor, Tensor] = {}
        #: How to wait for those that a GPU computes meanwhile.
        self.waits: dict[ExcitedTensor, Callable[[], None]] = {}


LENT = Lent()


class ExcitedTensor(parametrize.ParametrizationList):
    """``original``, the stored tensor, and ``0``, its excitation."""

    #: Whether the layer shows the stored tensor.
    bare = False
    #: Of the tensor that was computed last its version, and an empty one that counts with it.
    _seen: tuple[int, Tensor] | None = None

    def append(self, module: nn.Module):
        raise ValueError(
            f"{type(module).__name__} cannot follow an excitation, which is a tensor's only "
            "parametrization: fold the model first, or leave the tensor out by where"
        )

    def forward(self) -> Tensor:
        stored = self.original
        if isinstance(stored, torch.fx.Proxy):  # recorded by torch.fx: one call, as of torch's own
            return stored.tracer.create_proxy(
                "call_module", stored.tracer.path_of_module(self), (), {}
            )
        return self[0](stored)

    def check(self) -> None:
        """Raises RuntimeError, once, if what was computed last was written to."""
        seen = self._seen
        if seen and seen[1]._version != seen[0]:
            vars(self)["_seen"] = None
            raise RuntimeError(
                f"an excited weight of shape {tuple(self.original.shape)} was written to after it "
                "was computed, and its layer does not see that: write to the stored weight, "
                "layer.parametrizations.weight.original"
            )

    def read(self) -> Tensor:
        """The excited tensor, or the stored one while that is bare."""
        if self.bare:
            return self.original
        if recorded():
            return self()
        self.check()
        value = LENT.tensors.get(self)
        if self in LENT.waits:
            LENT.waits[self]()
        elif value is not None and capturing(value.device):
            value = None  # the graph would read where this one lies, whatever lies there then
        # Recomputation (torch.utils.checkpoint) has to save what it saved before.
        if value is None or torch._C._autograd._top_saved_tensors_default_hooks(False):
            value = self()
        if type(value) is Tensor and not value.is_inference():
            if value.data_ptr() != self.original.data_ptr():
                counter = value.detach()
                counter.data = value.new_empty(0)  # it holds no memory
                vars(self)["_seen"] = value._version, counter
        return value


def excited_tensors(module: nn.Module) -> dict[str, ExcitedTensor]:
    """The excited tensors of a layer, by their names."""
    if not parametrize.is_parametrized(module):
        return {}
    every = module.parametrizations.items()
    return {name: tensor for name, tensor in every if isinstance(tensor, ExcitedTensor)}


def below(module: nn.Module) -> list[nn.Module]:
    """A module and all in it, each once, in order: ``modules()``, without its price."""
    found, todo = {}, [module]
    while todo:
        one = todo.pop()
        if one is not None and one not in found:
            found[one] = None
            todo.extend(reversed(one._modules.values()))
    return list(found)


def tensors_of(model: nn.Module) -> Iterator[ExcitedTensor]:
    """Every excited tensor of a model, but those of an excitation's own nets."""
    inside = set()
    for module in below(model):
        if isinstance(module, ExcitedTensor):
            inside.update(below(module))
        elif "parametrizations" in module._modules and module not in inside:
            yield from excited_tensors(module).values()


def _outermost(module: nn.Module, prefix: str) -> dict[str, ExcitedTensor]:
    """Those but a net's of an excitation, whose configuration says what excites its nets."""
    return {} if "parametrizations." in prefix else excited_tensors(module)


def register(module: nn.Module, name: str, excitation: Parametrization) -> None:
    """Excite the tensor ``name`` of a layer."""
    parametrize.register_parametrization(module, name, excitation, unsafe=True)
    module.parametrizations[name].__class__ = ExcitedTensor
    if not hasattr(type(module), "_taught"):
        _teach(type(module))
    _show(type(module), name)


def _show(cls: type, name: str) -> None:
    def read(self: nn.Module) -> Tensor:
        return self.parametrizations[name].read()

    def write(self: nn.Module, value: Tensor) -> None:
        stored = self.parametrizations[name]
        if not stored.bare:
            raise RuntimeError(
                f"{name} of an excited layer is computed and cannot be assigned: assign to the "
                f"stored one, layer.parametrizations.{name}.original, or fold the model first"
            )
        stored.original = value

    setattr(cls, name, property(read, write))


def _teach(cls: type) -> None:
    """Give the class of a parametrized module what this module is about."""
    plain = cls.__bases__[0]
    copied = cls.__deepcopy__

    def deepcopy(self: nn.Module, memo: dict) -> nn.Module:
        if id(self) in memo:
            return memo[id(self)]
        replica = copied(self, memo)
        replica.__class__ = plain
        parametrize._inject_new_class(replica)
        for name in replica.parametrizations:
            parametrize._inject_property(replica, name)
        _teach(type(replica))
        for name, tensor in excited_tensors(replica).items():
            vars(tensor).pop("_seen", None)
            _show(type(replica), name)
        return replica

    def setattr_(self: nn.Module, name: str, value: object) -> None:
        if isinstance(value, nn.Parameter) and name in excited_tensors(self):
            object.__setattr__(self, name, value)  # torch would register it beside the property
        else:
            plain.__setattr__(self, name, value)

    def apply(self: nn.Module, function: Callable) -> nn.Module:
        for child in self.children():
            child.apply(function)
        with _bare(self):
            function(self)
        return self

    def save(self: nn.Module, destination: dict, prefix: str, keep_vars: bool) -> None:
        plain._save_to_state_dict(self, destination, prefix, keep_vars)
        for name, tensor in _outermost(self, prefix).items():
            note(destination, prefix, name, tensor[0].configuration)

    def load(self: nn.Module, state: dict, prefix: str, metadata: dict, *rest) -> None:
        _, missing, _, errors = rest
        for name, tensor in excited_tensors(self).items():
            own = f"{prefix}parametrizations.{name}."
            if prefix + name in state and own + "original" not in state:
                state[own + "original"] = state.pop(prefix + name)
                for key, value in tensor.state_dict(prefix=own, keep_vars=True).items():
                    state.setdefault(key, value)
            elif own + "original" in state and name in _outermost(self, prefix):
                compare(metadata, name, tensor[0].configuration, prefix + name, missing, errors)
        plain._load_from_state_dict(self, state, prefix, metadata, *rest)

    cls._taught = True
    cls.__deepcopy__, cls.__setattr__, cls.apply = deepcopy, setattr_, apply
    cls._save_to_state_dict, cls._load_from_state_dict = save, load
    for name in ("reset_parameters", "_reset_parameters"):
        if hasattr(plain, name):
            setattr(cls, name, _on_stored(getattr(plain, name)))


def _on_stored(method: Callable) -> Callable:
    def on_stored(self: nn.Module) -> None:
        with _bare(self):
            method(self)

    return on_stored


@contextmanager
def _bare(module: nn.Module) -> Iterator[None]:
    """Within it the layer shows its stored tensors."""
    tensors = excited_tensors(module).values()
    for tensor in tensors:
        tensor.bare = True
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.bare = False
