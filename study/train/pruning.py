"""Pruning, the oldest use of a weight's importance (thesis, section 2.1): by magnitude and by the
loss's second derivatives.

Masks are those of :mod:`torch.nn.utils.prune`: a pruned model trains on with its zeros kept, and
``torch.nn.utils.prune.remove(layer, "weight")`` makes a layer plain again. Weights here are those
of all convolutions and linear layers; biases and norms are never pruned.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

#: A loss, given the network as a function: ``lambda net: F.cross_entropy(net(images), labels)``.
Loss = Callable[[Callable[..., Tensor]], Tensor]


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers by the qualified names of their weights."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    found = {f"{n}.weight".lstrip("."): m for n, m in model.named_modules() if isinstance(m, kinds)}
    for name, module in found.items():
        if parametrize.is_parametrized(module):
            raise ValueError(f"{name} is parametrized: fold the model before pruning it")
    if not found:
        raise ValueError("nothing to prune: the model has no convolution and no linear layer")
    return found


def _kept(module: nn.Module) -> Tensor:
    """True where the weight is not pruned."""
    return getattr(module, "weight_mask", torch.ones_like(module.weight)).bool()


def prune(model: nn.Module, amount: float, scores: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Set the weights of the lowest scores to zero, over all layers together, and keep them there.

    Without scores it is magnitude pruning (Han et al. 2015): train, prune, train on. Called again,
    it takes ``amount`` of what is left.

    Args:
        model: changed in place and returned.
        amount: fraction of the weights, 0 to 1.
        scores: by qualified name of the weight, as :func:`saliency` gives them; below 0 is as 0.

    Raises:
        ValueError: ``amount`` is outside of 0 to 1, a layer is parametrized or has no scores.
    """
    if not 0 <= amount <= 1:
        raise ValueError(f"amount is {amount}: expected a fraction of the weights, 0 to 1")
    layers = _layers(model)
    if scores is None:
        scores = {name: module.weight.detach().abs() for name, module in layers.items()}
    elif missing := [name for name in layers if name not in scores]:
        raise ValueError(f"{missing[0]} has no scores: give those of every layer's weight")
    kept = torch.cat([_kept(module).flatten() for module in layers.values()])
    order = torch.cat([scores[name].clamp(min=0).flatten() for name in layers])
    count = round(amount * kept.sum().item())
    kept[order.masked_fill(~kept, torch.inf).topk(count, largest=False).indices] = False
    masks = kept.split([module.weight.numel() for module in layers.values()])
    for module, mask in zip(layers.values(), masks, strict=True):
        torch_prune.custom_from_mask(module, "weight", mask.view(module.weight.shape))
    return model


class _Weights:
    """A model's weights end to end as one vector, and the loss as a function of it."""

    def __init__(self, model: nn.Module, loss: Loss):
        if model.training:
            raise ValueError("the model is in training mode: call model.eval() first")
        self.model, self.loss, self.layers = model, loss, _layers(model)
        self.keys = [
            f"{name}_orig" if torch_prune.is_pruned(module) else name
            for name, module in self.layers.items()
        ]
        self.shapes = [model.get_parameter(key).shape for key in self.keys]
        self.vector = torch.cat([m.weight.detach().flatten() for m in self.layers.values()])

    def split(self, vector: Tensor) -> list[Tensor]:
        parts = vector.split([shape.numel() for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def __call__(self, vector: Tensor) -> Tensor:
        values = dict(zip(self.keys, self.split(vector), strict=True))
        return self.loss(lambda *inputs: functional_call(self.model, values, inputs))

    def hessian(self, chunk: int, take: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """``take(rows, numbers of the rows)`` of the Hessian, ``chunk`` rows at a time."""
        _, product = vjp(grad(self), self.vector)
        taken = []
        for index in torch.arange(len(self.vector), device=self.vector.device).split(chunk):
            basis = self.vector.new_zeros(len(index), len(self.vector))
            basis[torch.arange(len(index)), index] = 1
            taken.append(take(vmap(product)(basis)[0], index))
        return torch.cat(taken)


def saliency(model: nn.Module, loss: Loss, *, chunk: int = 64) -> dict[str, Tensor]:
    """Optimal brain damage: what the loss would rise by without each weight (LeCun et al. 1990).

    ``s = ½·h·w²`` with h the diagonal of the loss's Hessian, equation 3 and the text below it. It
    is exact here, one Hessian-vector product a weight, so the model should be small; LeCun et al.
    drop second derivatives of the activations, which makes their h never negative. A kink such as
    relu's counts as flat.

    Args:
        model: in evaluation mode.
        loss: of the network as a function, ``lambda net: F.cross_entropy(net(images), labels)``.
        chunk: Hessian-vector products at a time, for memory.

    Returns:
        By qualified name of the weight a tensor of its shape; 0 where it is pruned.

    Raises:
        ValueError: the model is in training mode, or a layer is parametrized.
    """
    weights = _Weights(model, loss)
    diagonal = weights.hessian(chunk, lambda rows, index: rows[torch.arange(len(index)), index])
    scores = weights.split(0.5 * diagonal * weights.vector**2)
    return dict(zip(weights.layers, scores, strict=True))


@torch.no_grad()
def surgeon(
    model: nn.Module, loss: Loss, count: int, *, damping: float = 1e-4, chunk: int = 64
) -> list[float]:
    """Optimal brain surgeon: prune ``count`` weights and correct the others (Hassibi & Stork 1993).

    One after the other, the weight q that costs least, ``L = ½·w_q² / [H⁻¹]_qq``, is removed and
    all move by ``−w_q / [H⁻¹]_qq · H⁻¹ e_q`` (equation 5), where H is the loss's Hessian plus
    ``damping`` on its diagonal. H is computed once, and its inverse reduced to the weights that are
    left. It takes memory for the square of the number of weights: a model of a few thousand.

    Args:
        model: at a minimum of the loss, in evaluation mode, not yet pruned; changed in place.
        loss: as for :func:`saliency`.
        count: weights to remove.
        damping: added to the diagonal, in units of the loss over the weight squared.
        chunk: Hessian-vector products at a time.

    Returns:
        The predicted rise of the loss at each removal.

    Raises:
        ValueError: H is not positive definite, ``count`` is not possible, the model is pruned, in
            training mode or parametrized.
    """
    with torch.enable_grad():
        weights = _Weights(model, loss)
        if any(torch_prune.is_pruned(module) for module in weights.layers.values()):
            raise ValueError("the model is pruned already: remove the masks before the surgeon")
        hessian = weights.hessian(chunk, lambda rows, index: rows)
    w = weights.vector
    if not 0 <= count <= len(w):
        raise ValueError(f"count is {count}: expected 0 to {len(w)}, the model's weights")
    factor, failed = torch.linalg.cholesky_ex(hessian + damping * torch.eye(len(w)).to(w))
    if failed:
        raise ValueError(
            f"the Hessian plus {damping:g} on its diagonal is not positive definite: train to a "
            "minimum, or raise damping"
        )
    inverse = torch.cholesky_inverse(factor)
    kept, rises = torch.ones_like(w), []
    for _ in range(count):
        cost = torch.where(kept.bool(), 0.5 * w**2 / inverse.diagonal(), torch.inf)
        q = cost.argmin()
        rises.append(cost[q].item())
        column = inverse[:, q] / inverse[q, q]
        w = w - w[q] * column
        inverse = inverse - column[:, None] * inverse[q]
        kept[q] = 0
        w = w * kept
    parts = zip(weights.layers.values(), weights.split(w), weights.split(kept), strict=True)
    for module, values, mask in parts:
        module.weight.copy_(values)
        torch_prune.custom_from_mask(module, "weight", mask)
    return rises
