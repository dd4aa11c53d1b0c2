"""Attach an excitation to one tensor of one module."""

from torch import nn
from torch.nn.utils import parametrize

from wexlib.recipe import Excitation


def register(module: nn.Module, name: str, excitation: Excitation) -> None:
    """``parametrize.register_parametrization``, safe to copy.

    Torch gives a parametrized module a class of its own, with a property for the tensor, and a
    deep copy the same class: removing the parametrization from either one takes the property from
    both, and within ``parametrize.cached()`` the copy reads the weight of the first. Here a copy
    gets its own class.
    """
    parametrize.register_parametrization(module, name, excitation, unsafe=True)
    if not hasattr(type(module), "copies_apart"):
        _copy_apart(type(module))


def _copy_apart(cls: type) -> None:
    inherited = cls.__deepcopy__

    def deepcopy(self: nn.Module, memo: dict) -> nn.Module:
        if id(self) in memo:
            return memo[id(self)]
        replica = inherited(self, memo)
        replica.__class__ = cls.__bases__[0]
        parametrize._inject_new_class(replica)
        for name in replica.parametrizations:
            parametrize._inject_property(replica, name)
        _copy_apart(type(replica))
        return replica

    cls.__deepcopy__ = deepcopy
    cls.copies_apart = True
