"""Pruning: magnitudes sorted by hand, curvature by differences, the surgeon by least squares."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune

from study.train.pruning import prune, saliency, surgeon


@pytest.fixture
def problem():
    """A small convolutional net in float64 and its loss."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    )
    model = model.double().eval()
    x, y = torch.randn(6, 1, 3, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    return model, lambda net: F.cross_entropy(net(x), y)


def test_magnitude_pruning_is_over_all_layers_together():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, -5.0], [0.3, 4.0]]))
        model[1].weight.copy_(torch.tensor([[-0.2, 3.0]]))
        model[1].bias.fill_(0.01)
    assert prune(model, 1 / 3) is model
    assert (model[0].weight != 0).tolist() == [[False, True], [True, True]]
    assert (model[1].weight != 0).tolist() == [[False, True]]
    assert model[1].bias.item() == pytest.approx(0.01)
    prune(model, 0.25)  # one of the four that are left
    assert (model[0].weight != 0).tolist() == [[False, True], [False, True]]


def test_pruning_is_the_same_in_every_memory_format():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 3))
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    for _ in range(2):
        prune(model, 0.4), prune(other, 0.4)
        assert torch.equal(model[0].weight, other[0].weight)
        assert torch.equal(model[2].weight_mask, other[2].weight_mask)


def test_pruned_weights_stay_zero_in_training(problem):
    model, loss = problem
    prune(model.train(), 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    weights = torch.cat([model[0].weight.flatten(), model[4].weight.flatten()])
    assert (weights == 0).sum() == len(weights) // 2
    for layer in (model[0], model[4]):
        torch_prune.remove(layer, "weight")
    assert "0.weight" in model.state_dict()


def test_saliency_is_the_second_difference_of_the_loss(problem):
    model, loss = problem
    scores = saliency(model, loss, chunk=5)
    assert scores.keys() == {"0.weight", "4.weight"}
    step = 1e-4
    for name, score in scores.items():
        weight = model.get_parameter(name).data
        assert score.shape == weight.shape
        for index in range(weight.numel()):
            kept = weight.view(-1)[index].item()
            losses = []
            for shift in (-step, 0, step):
                weight.view(-1)[index] = kept + shift
                losses.append(loss(model).item())
            weight.view(-1)[index] = kept
            curvature = (losses[0] - 2 * losses[1] + losses[2]) / step**2
            expected = 0.5 * curvature * kept**2
            assert score.view(-1)[index].item() == pytest.approx(expected, abs=1e-6)


def test_saliency_does_not_depend_on_chunks_and_changes_nothing(problem):
    model, loss = problem
    before = copy.deepcopy(model.state_dict())
    one, all_ = saliency(model, loss, chunk=1), saliency(model, loss, chunk=1000)
    for name in one:
        torch.testing.assert_close(one[name], all_[name])
    assert all(before[key].equal(value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_saliency_prunes_and_knows_what_is_pruned(problem):
    model, loss = problem
    scores = saliency(model, loss)
    flat = torch.cat([score.flatten() for score in scores.values()]).clamp(min=0)
    prune(model, 0.5, scores)
    zero = torch.cat([model[i].weight.flatten() for i in (0, 4)]) == 0
    assert zero.sum() == len(flat) // 2
    assert flat[zero].max() <= flat[~zero].min()
    again = saliency(model, loss)
    for name, index in (("0.weight", 0), ("4.weight", 4)):
        assert not again[name][model[index].weight == 0].any()
        assert again[name].shape == model[index].weight.shape


def test_scores_below_zero_go_first():
    model = nn.Linear(4, 1)
    prune(model, 0.5, {"weight": torch.tensor([[-9.0, 1.0, -8.0, 2.0]])})
    assert (model.weight != 0).tolist() == [[False, True, False, True]]


def test_surgeon_finds_the_least_squares_solution_without_the_weight():
    """A linear layer and squared errors: what is left must be the optimum of what is left."""
    torch.manual_seed(0)
    x = torch.randn(40, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0, 0.1, 3.0, 0.5], dtype=torch.float64) + torch.randn(40).double()
    model = nn.Linear(5, 1, bias=False).double().eval()

    def loss(net):
        return ((net(x)[:, 0] - y) ** 2).mean()

    def solve(columns):
        w = torch.linalg.lstsq(x[:, columns], y).solution
        return w, ((x[:, columns] @ w - y) ** 2).mean().item()

    full, start = solve([0, 1, 2, 3, 4])
    model.weight.data.copy_(full)
    rises = surgeon(model, loss, 2, damping=0.0)
    left = [q for q in range(5) if model.weight[0, q] != 0]
    expected, end = solve(left)
    assert len(left) == 3
    torch.testing.assert_close(model.weight[0, left], expected)
    assert sum(rises) == pytest.approx(end - start)
    # The first to go is the one whose removal costs least of all five.
    costs = [solve([c for c in range(5) if c != q])[1] - start for q in range(5)]
    assert rises[0] == pytest.approx(min(costs))


def test_surgeon_predicts_the_rise_and_beats_plain_removal():
    """A net at its minimum, that of its own outputs, with one small weight."""
    torch.manual_seed(1)
    x = torch.randn(60, 3, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).double().eval()
    for layer in (model[0], model[2]):
        nn.init.uniform_(layer.weight, 0.5, 1.5)
    model[0].weight.data[1, 2] = 0.01
    y = model(x).detach()

    def loss(net):
        return ((net(x) - y) ** 2).mean()

    zeroed = copy.deepcopy(model)
    zeroed[0].weight.data[1, 2] = 0
    [rise] = surgeon(model, loss, 1, damping=1e-12)
    assert (model[0].weight == 0).nonzero().tolist() == [[1, 2]]
    assert loss(model).item() == pytest.approx(rise, rel=0.1)
    assert loss(model) < 0.9 * loss(zeroed)


def test_errors(problem):
    model, loss = problem
    with pytest.raises(ValueError, match="amount is 2: expected a fraction"):
        prune(model, 2)
    with pytest.raises(ValueError, match=r"4\.weight has no scores"):
        prune(model, 0.5, {"0.weight": model[0].weight})
    with pytest.raises(ValueError, match="nothing to prune"):
        prune(nn.ReLU(), 0.5)
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        saliency(model.train(), loss)
    with pytest.raises(ValueError, match="count is 33: expected 0 to 32"):
        surgeon(model.eval(), loss, 33)
    with pytest.raises(ValueError, match="not positive definite"):
        surgeon(model, lambda net: -loss(net), 1)
    with pytest.raises(ValueError, match="remove the masks"):
        surgeon(prune(copy.deepcopy(model), 0.5), loss, 1)
    nn.utils.parametrizations.weight_norm(model[4])
    with pytest.raises(ValueError, match=r"4\.weight is parametrized: fold"):
        saliency(model, loss)
