"""Filters on other axes than the first: known layers, ``axis``, and what nn.Linear leaves out."""

import copy
import re
import sys
import warnings

import pytest
import torch
from networks import OURS, SE_WS
from torch import nn
from torch.nn.utils import parametrize

from wexlib import (
    BAM,
    CBAM,
    SE,
    Global,
    Location,
    Magnitude,
    Standardize,
    Triplet,
    describe,
    excite,
    fold,
    inspect,
    load,
    pause,
    save,
)
from wexlib import models as library
from wexlib.where import excited


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Conv1D(nn.Module):
    """As transformers has it: a linear layer with its weight as (in, out)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


#: One of the same name that nobody knows.
Mine = type("Conv1D", (nn.Module,), {})
Conv1D.__module__ = "transformers.pytorch_utils"


class Sub(Conv1D):
    pass


class Experts(nn.Module):
    """Of each expert two matrices that multiply from the right, as (in, out)."""

    def __init__(self, experts=3, width=8, hidden=12):
        super().__init__()
        self.up = nn.Parameter(torch.randn(experts, width, hidden))
        self.down = nn.Parameter(torch.randn(experts, hidden, width))

    def forward(self, x):
        return torch.relu(x @ self.up) @ self.down


EXCITATIONS = [
    Standardize(),
    SE_WS,
    OURS,
    [Location(CBAM(), control="free"), Magnitude("learnable")],
    [Location(BAM(), start="identity"), Location(Triplet())],
    Global(),
]


#: A deviation is 1 but for the constant that is added to it.
NEAR = {"rtol": 0, "atol": 1e-3}


def twin(weight: torch.Tensor) -> nn.Linear:
    """A linear layer with these filters, a row each."""
    layer = nn.Linear(weight.shape[1], len(weight), dtype=weight.dtype)
    layer.weight = nn.Parameter(weight.detach().clone())
    return layer


def alike(ours: nn.Module, theirs: nn.Module, attribute="weight") -> None:
    """Give the one's nets to the other."""
    ours = ours.parametrizations[attribute][0].filters
    theirs.parametrizations.weight[0].load_state_dict(ours.state_dict())


# --- Known layers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Conv1D, Sub])
@pytest.mark.parametrize("excitation", EXCITATIONS, ids=str)
def test_conv1d_is_a_linear_layer_transposed(kind, excitation):
    layer = kind(12, 8)
    linear = twin(layer.weight.T)
    excite(layer, excitation), excite(linear, excitation)
    alike(layer, linear)
    torch.testing.assert_close(layer.weight.T, linear.weight, rtol=1e-5, atol=1e-6)
    assert layer.weight.is_contiguous()
    x, towards = torch.randn(2, 5, 8).unbind(), torch.randn(5, 12)
    (layer(x[0]) * towards).sum().backward()
    (linear(x[0]) * towards).sum().backward()
    stored = [one.parametrizations.weight.original.grad for one in (layer, linear)]
    torch.testing.assert_close(stored[0].T, stored[1], rtol=1e-4, atol=1e-5)
    expected = layer(x[1])
    fold(layer)
    assert torch.equal(layer(x[1]), expected) and type(layer) is kind


def test_a_look_alike_is_not_taken_for_one_and_axis_says_it():
    layers = Conv1D(12, 8), Mine(), Mine()
    for layer in layers[1:]:
        layer.weight = nn.Parameter(layers[0].weight.detach().clone())
    excite(layers[0], Standardize())
    excite(layers[1], Standardize(), where="weight", axis=1)
    excite(layers[2], Standardize(), where="weight")
    assert torch.equal(layers[0].weight, layers[1].weight)
    torch.testing.assert_close(layers[1].weight.mean(0), torch.zeros(12))
    torch.testing.assert_close(layers[2].weight.mean(1), torch.zeros(8))


def test_conv1d_is_selected_as_a_layer_and_nothing_is_imported():
    model = nn.ModuleDict({"attn": nn.ModuleDict({"c_attn": Conv1D(24, 8), "c_proj": Sub(8, 8)})})
    excite(model, Magnitude(), where=r"^attn\.c_")
    assert [slot.name for slot in excited(model)] == ["attn.c_attn.weight", "attn.c_proj.weight"]
    assert "transformers" not in sys.modules


def test_bilinear_and_cells_have_their_filters_on_axis_0():
    model = nn.ModuleDict({"two": nn.Bilinear(4, 5, 6), "cell": nn.GRUCell(4, 6)})
    excite(model, Standardize(), where="weight")
    assert [row["shape"] for row in describe(model)] == [(6, 4, 5), (18, 4), (18, 6)]
    for weight in (model["two"].weight, model["cell"].weight_hh):
        torch.testing.assert_close(weight.flatten(1).std(1), torch.ones(len(weight)), **NEAR)


# --- axis ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [(0, 2), (2, 0), (-3, -1), (0, -1)])
@pytest.mark.parametrize("excitation", EXCITATIONS, ids=str)
def test_experts_are_filters_of_all_their_outputs(axis, excitation):
    experts = Experts()
    linear = twin(torch.cat([expert.T for expert in experts.up]))
    excite(experts, excitation, where="up", axis=axis), excite(linear, excitation)
    alike(experts, linear, "up")
    wanted = torch.stack([rows.T for rows in linear.weight.chunk(3)])
    torch.testing.assert_close(experts.up, wanted, rtol=1e-5, atol=1e-6)
    assert experts.up.is_contiguous() and experts.up.shape == (3, 8, 12)
    x = torch.randn(3, 2, 8)
    expected = experts(x)
    twins = copy.deepcopy(experts)
    assert torch.equal(twins(x), expected)
    assert torch.equal(fold(experts)(x), expected)
    assert type(experts) is Experts and torch.equal(twins(x), expected)


def test_one_axis_of_three_leaves_channels_and_then_space():
    experts = Experts()
    excite(experts, Location(SE()), where="up", axis=2)
    net = experts.parametrizations.up[0].filters
    convolution = nn.Conv1d(3, 12, 8)
    stored = experts.parametrizations.up.original.detach()
    convolution.weight = nn.Parameter(torch.stack([stored[:, :, o] for o in range(12)]))
    excite(convolution, Location(SE()))
    convolution.parametrizations.weight[0].load_state_dict(net.state_dict())
    wanted = torch.stack(list(convolution.weight), 2)
    torch.testing.assert_close(experts.up, wanted)


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        (lambda: nn.Linear(6, 4), 0),
        (lambda: nn.Linear(6, 4), -2),
        (lambda: nn.Conv2d(6, 4, 3, groups=2), (0,)),
        (lambda: nn.ConvTranspose2d(6, 4, 3), 1),
        (lambda: nn.ConvTranspose2d(6, 4, 3, groups=2), -3),
        (lambda: nn.MultiheadAttention(6, 2), 0),
        (lambda: Conv1D(6, 4), -1),
    ],
)
def test_a_layer_s_own_axis_is_its_default(layer, axis):
    one = layer()
    other = copy.deepcopy(one)
    for model, given in ((one, None), (other, axis)):
        generator = torch.Generator().manual_seed(3)
        excite(model, OURS, where="weight", axis=given, generator=generator)
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    pairs = zip(excited(one), excited(other), strict=True)
    assert all(
        torch.equal(getattr(a.module, a.attribute), getattr(b.module, b.attribute))
        for a, b in pairs
    )


def test_another_axis_of_a_layer_and_of_each_of_query_key_and_value():
    """By the inputs, which is what axis=1 asks for there."""
    layers = nn.Linear(6, 4), nn.Conv2d(6, 4, 3), nn.ConvTranspose2d(4, 6, 3)
    for layer, axis in zip(layers, (1, 1, 0), strict=True):
        excite(layer, Standardize(), axis=axis)
        filters = layer.weight.movedim(axis, 0).flatten(1)
        torch.testing.assert_close(filters.std(1), torch.ones(len(filters)), **NEAR)
    attention = nn.MultiheadAttention(6, 2)
    excite(attention, SE_WS, where="in_proj", axis=1)
    parts = attention.parametrizations.in_proj_weight[0]
    stored = attention.parametrizations.in_proj_weight.original
    assert len(parts.cores) == 3
    for core, part, got in zip(
        parts.cores, stored.chunk(3), attention.in_proj_weight.chunk(3), strict=True
    ):
        torch.testing.assert_close(got, core(part.T).T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_memory_format_and_the_dtype_are_the_weight_s(dtype):
    layers = [
        (nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), 1),
        (nn.Conv2d(4, 6, 3), (0, 2)),
        (nn.Conv3d(4, 6, 3).to(memory_format=torch.channels_last_3d), (4, 1)),
        (nn.Linear(4, 6), 1),
    ]
    for layer, axis in layers:
        layer.to(dtype)
        before = layer.weight.stride()
        excite(layer, SE_WS, axis=axis)
        assert layer.weight.stride() == before and layer.weight.dtype == dtype
        assert fold(layer).weight.stride() == before


def test_it_is_described_inspected_paused_and_shared():
    experts = Experts(width=12)
    before = experts.up.detach().clone()
    excite(experts, SE_WS, where="up|down", axis=(0, 2), shared=True)
    rows = describe(experts)
    assert [row["weight"] for row in rows] == ["up", "down"] and rows[0]["shape"] == (3, 12, 12)
    assert rows[0]["parameters"] > 0 == rows[1]["parameters"]
    assert len({core for slot in excited(experts) for core in slot.excitation.cores}) == 1
    layer = excite(Conv1D(12, 8), SE_WS)
    seen = inspect(layer)
    assert seen["stored"].shape == (8, 12) and seen["standardized"].shape == (12, 8, 1, 1)
    wanted = (seen["standardized"] * seen["multiplier"])[:, :, 0, 0].T
    torch.testing.assert_close(seen["excited"], wanted)
    fold(pause(excite(fold(experts), Location(SE()), where="up", axis=(0, 2))))
    excite(other := Experts(width=12), Location(SE()), where="up", axis=(0, 2))
    other.parametrizations.up.original.data.copy_(before)
    assert torch.equal(pause(other).up, before)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: excite(Experts(), SE_WS, where="up"),
            ValueError,
            "up has three axes and is of no known layer: say which number its filters, such as",
        ),
        (
            lambda: excite(Experts(), SE_WS, where=Experts),
            ValueError,
            "up has three axes and is of no known layer",
        ),
        (
            lambda: excite(Conv1D(4, 6), SE_WS, axis=2),
            ValueError,
            "axis=2 is not of weight: expected -2 to 1, as it has 2 axes",
        ),
        (
            lambda: excite(Experts(), SE_WS, where="up|down", axis=(0, -4)),
            ValueError,
            "axis=(0, -4) is not of up: expected -3 to 2",
        ),
        (
            lambda: excite(Experts(), SE_WS, where="up", axis=(0, -3)),
            ValueError,
            "axis=(0, -3) names an axis of up twice: expected each once",
        ),
        (
            lambda: excite(nn.Linear(4, 6), SE_WS, axis=(0, 1)),
            ValueError,
            "axis=(0, 1) is all axes of weight: expected one to remain, of input channels",
        ),
        (
            lambda: excite(nn.MultiheadAttention(4, 2), SE_WS, where="in_proj", axis=(1, 0)),
            ValueError,
            "axis=(1, 0) is all axes of in_proj_weight",
        ),
        (
            lambda: excite(nn.Conv2d(4, 6, 3, groups=2), SE_WS, axis=1),
            ValueError,
            "axis=1 does not fit weight, of a convolution in groups: leave axis out",
        ),
        (
            lambda: excite(nn.ConvTranspose2d(4, 6, 3, groups=2), SE_WS, axis=(0, 1)),
            ValueError,
            "axis=(0, 1) does not fit weight, of a convolution in groups",
        ),
        *(
            (
                lambda axis=axis: excite(nn.Linear(4, 6), SE_WS, axis=axis),
                TypeError,
                f"axis is {axis!r}: expected a whole number or a tuple of them",
            )
            for axis in ("out", 1.0, True, (), (0, None), [0, 1])
        ),
    ],
)
def test_an_axis_that_does_not_fit_is_refused(make, error, words):
    with pytest.raises(error, match=re.escape(words)) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_refusal_leaves_the_model_as_it_was():
    model = nn.ModuleList([Experts(), nn.Linear(4, 6)])
    with pytest.raises(ValueError, match="axis=-3 is not of 1.weight"):
        excite(model, SE_WS, where="up|1", axis=-3)
    assert not any(parametrize.is_parametrized(module) for module in model.modules())


# --- Checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_a_checkpoint_has_the_axes(shared, tmp_path, monkeypatch):
    def build(*, classes):
        return nn.ModuleList([Experts(3, classes, 12), Conv1D(12, classes), nn.Linear(12, classes)])

    monkeypatch.setitem(library.MODELS, "experts", build)
    model = build(classes=8)
    excite(model, SE_WS, where=r"up", axis=(0, -1))
    excite(model, SE_WS, where=r"down", axis=-1)
    excite(model, Global(), where=r"^[12]", shared=shared)
    save(tmp_path / "a", model, model="experts", classes=8)
    again = load(tmp_path / "a")
    pairs = zip(model.state_dict().items(), again.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    for a, b in zip(excited(model), excited(again), strict=True):
        assert torch.equal(getattr(a.module, a.attribute), getattr(b.module, b.attribute))
    assert len(list(again.parameters())) == len(list(model.parameters()))
    save(tmp_path / "b", again, model="experts", classes=8)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_models_of_other_axes_are_excited_differently(tmp_path):
    models = {i: excite(nn.Linear(4, 4), Standardize(), axis=i) for i in (0, 1)}
    with pytest.raises(ValueError, match="excited differently"):
        save(tmp_path / "a", models, model="linear", classes=4)


# --- What where=nn.Linear leaves out --------------------------------------------------------------


def zoo() -> nn.ModuleDict:
    """Of everything something."""
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(8, 8),
            "conv": nn.Conv1d(8, 8, 3),
            "transposed": nn.ConvTranspose1d(8, 8, 3),
            "embedding": nn.Embedding(9, 8),
            "bag": nn.EmbeddingBag(9, 8),
            "norm": nn.LayerNorm([8, 8]),
            "rnn": nn.LSTM(8, 8),
            "activation": nn.PReLU(8),
        }
    )
    model.pos_embedding = nn.Parameter(torch.zeros(1, 9, 8))
    model.positional = nn.Parameter(torch.zeros(9, 8))
    model.relative_position_bias_table = nn.Parameter(torch.zeros(9, 8))
    model.query = nn.Parameter(torch.zeros(9, 8))
    model.prompts = nn.ParameterList([torch.zeros(9, 8), torch.zeros(9, 8)])
    model.gamma = nn.Parameter(torch.zeros(8, 1, 1))
    model.cls = nn.Parameter(torch.zeros(1, 1, 8))
    return model


LINEAR = [nn.Linear, (nn.Linear,), (nn.Conv1d, nn.Linear)]


@pytest.mark.parametrize("where", LINEAR)
def test_nothing_is_said_where_nothing_is_left_out(where):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        excite(zoo(), Magnitude(), where=where)


@pytest.mark.parametrize("where", LINEAR)
@pytest.mark.parametrize(
    ("part", "name"),
    [
        (lambda: Conv1D(8, 8), "part.weight (Conv1D)"),
        (lambda: nn.MultiheadAttention(8, 2), "part.in_proj_weight (MultiheadAttention)"),
        (lambda: nn.MultiheadAttention(8, 2, kdim=4), "part.q_proj_weight (MultiheadAttention)"),
        (Experts, "part.up (Experts), part.down (Experts)"),
        (lambda: nn.ParameterList([torch.ones(3, 4, 4)]), "part.0 (ParameterList)"),
        (lambda: nn.ParameterDict({"w_query": torch.ones(4, 4)}), "part.w_query (ParameterDict)"),
        (lambda: nn.Bilinear(2, 3, 4), "part.weight (Bilinear)"),
        (lambda: nn.LSTMCell(2, 3), "part.weight_ih (LSTMCell), part.weight_hh (LSTMCell)"),
    ],
)
def test_a_warning_names_the_matrices_that_are_of_no_linear_layer(where, part, name):
    model = zoo()
    model["part"] = part()
    with pytest.warns(UserWarning, match=re.escape(name)) as caught:
        excite(model, Magnitude(), where=where)
    (said,) = caught
    text = str(said.message)
    assert text.startswith("where=nn.Linear leaves out ") and "\n" not in text
    assert "by type or name, with axis= where" in text and said.filename == __file__
    assert not any(word in text for word in ("bag", "norm", "pos", "rnn", "transposed", "gamma"))


def test_the_warning_counts_all_and_can_be_answered():
    model = nn.ModuleList([nn.Linear(8, 8), *(Conv1D(8, 8) for _ in range(5)), Experts()])
    with pytest.warns(UserWarning, match=r"leaves out 7 weights .* 1\.weight \(Conv1D\), 6\.up"):
        excite(copy.deepcopy(model), Magnitude(), where=nn.Linear)
    excite(copy.deepcopy(model), Magnitude(), where=lambda _, layer: isinstance(layer, nn.Linear))
    with pytest.warns(UserWarning, match=r"leaves out 2 weights .*, such as 6\.up \(Experts\)"):
        excite(copy.deepcopy(model), Magnitude(), where=(nn.Linear, Conv1D))
    excite(model, Magnitude(), where=Experts, axis=(0, 2))
    excite(model, Magnitude(), where=(nn.Linear, Conv1D))


def test_where_no_layer_is_linear_the_error_names_what_is_like_one():
    model = nn.ModuleList(
        [nn.Embedding(9, 8), nn.Embedding(9, 8), nn.Embedding(9, 8), Conv1D(8, 8)]
    )
    with pytest.raises(
        ValueError, match=r"matches no weight: expected one of 3\.weight, 0\.weight"
    ):
        excite(model, Magnitude(), where=nn.Linear)


def test_a_warning_that_is_an_error_leaves_the_model_as_it_was():
    model = nn.ModuleList([nn.Linear(8, 8), Experts()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            excite(model, Magnitude(), where=nn.Linear)
    assert not parametrize.is_parametrized(model[0])


@pytest.mark.parametrize("name", sorted(library.MODELS.keys() - {"fcn"}))  # it has no linear layer
def test_nothing_is_said_in_this_library_s_own_models(name):
    """But for in_proj_weight, where it is not asked for: ``study`` asks for it."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for kinds in ((nn.Linear, nn.MultiheadAttention), (nn.Conv1d, nn.Conv2d, nn.Linear)):
            if name == "vit":
                kinds = (*kinds, nn.MultiheadAttention)
            excite(library.build(name, classes=10), Magnitude(), where=kinds)
