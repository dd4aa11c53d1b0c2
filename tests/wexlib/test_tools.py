"""Torch's tools on an excited model: right numbers, or one sentence that says what to do."""

import copy
import io
import os
import subprocess
import sys
from textwrap import dedent

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, grad, hessian, jacfwd, jvp, vmap

from wexlib import (
    BAM,
    CBAM,
    SE,
    Global,
    Location,
    Magnitude,
    Standardize,
    Triplet,
    attend,
    describe,
    excite,
    fold,
    inspect,
    pause,
    precompute,
    resume,
    save,
)

EXCITATIONS = {
    "standardize": Standardize(),
    "se": Location(SE()),
    "cbam": Location(CBAM(activation="leaky_relu"), skips=True),
    "bam": Location(BAM()),
    "triplet": Location(Triplet()),
    "free": Location(SE(), control="free"),
    "mean": Location(SE(), control="mean"),
    "stacked": Location(SE(), stacked=(Standardize(), Magnitude())),
    "global": Global(),
    "each channel": Global(width=None),
    "artanh": Magnitude(),
    "thesis": Magnitude("thesis"),
    "learnable": Magnitude("learnable"),
    "chain": [Standardize(), Location(CBAM()), Magnitude()],
}
ATTENTIONS = {"se": SE(), "cbam": CBAM(), "bam": BAM(), "triplet": Triplet()}

kinds = pytest.mark.parametrize("excitation", EXCITATIONS.values(), ids=EXCITATIONS)
attentions = pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS)
#: Of torch itself.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{warning}")
    for warning in (
        ".*torch.jit:FutureWarning",
        ".*torch.jit:DeprecationWarning",
        ".*is deprecated:FutureWarning",
        ".*is deprecated:DeprecationWarning",
        ".*legacy TorchScript-based ONNX export:DeprecationWarning",
        "The feature will be removed:DeprecationWarning",
        "torch.quantize_per_tensor:UserWarning",
        ":torch.jit.TracerWarning",
    )
]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)

    def forward(self, x):
        return self.conv(x).tanh()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), Block(), nn.Flatten(), nn.Linear(64, 2)).eval()


def excited(excitation, where=None) -> nn.Module:
    return excite(network(), excitation, where=where)


def attended(attention) -> nn.Module:
    return attend(network(), attention, where="^1$").eval()


IMAGES = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def images() -> torch.Tensor:
    return IMAGES.clone()


def close(found, expected) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# --- TorchScript ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [None, nn.Linear, "0.weight"], ids=["all", "linear", "one"])
@kinds
def test_script_of_an_excited_model_says_fold(excitation, where):
    model = excited(excitation, where)
    with pytest.raises(RuntimeError, match="cannot compile an excitation: fold the model first"):
        torch.jit.script(model)
    folded = fold(model)
    assert torch.equal(torch.jit.script(folded)(images()), folded(images()))


@attentions
def test_script_of_an_attended_model_says_trace(attention):
    with pytest.raises(RuntimeError, match="cannot compile attention .*: use torch.jit.trace"):
        torch.jit.script(attended(attention))


@kinds
def test_a_trace_passes_torchs_own_check(excitation):
    """Which traces again without gradients, and compares the graphs."""
    model = excited(excitation)
    traced = torch.jit.trace(model, images(), check_trace=True)
    close(traced(images()), model(images()))


@attentions
def test_a_trace_of_an_attended_model_passes_torchs_own_check(attention):
    model = attended(attention)
    close(torch.jit.trace(model, images(), check_trace=True)(images()), model(images()))


@pytest.mark.parametrize("excitation", [Location(CBAM()), Magnitude()], ids=["cbam", "artanh"])
def test_a_trace_without_gradients_has_the_gradient_of_equal_maxima(excitation):
    model = excited(excitation)
    with torch.no_grad():
        for layer in (model[0], model[1].conv):
            layer.parametrizations.weight.original.sign_().mul_(0.3)
        traced = torch.jit.trace(model, images())
    weight = model[0].parametrizations.weight.original
    (expected,) = torch.autograd.grad(model(images()).square().sum(), weight)
    (found,) = torch.autograd.grad(traced(images()).square().sum(), weight)
    close(found, expected)


# --- torch.fx -------------------------------------------------------------------------------------


@attentions
def test_fx_records_attention_as_one_call(attention):
    model = attended(attention)
    recorded = torch.fx.symbolic_trace(model)
    targets = [node.target for node in recorded.graph.nodes if node.op == "call_module"]
    assert targets == ["0", "1.conv", "1.feature_attention", "2", "3"]
    assert torch.equal(recorded(images()), model(images()))
    recorded(images()).square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(images()).square().sum().backward()
    assert all(torch.equal(found[name], p.grad) for name, p in model.named_parameters())


@kinds
def test_fx_records_excited_layers(excitation):
    model = excited(excitation)
    recorded = torch.fx.symbolic_trace(model)
    assert torch.equal(recorded(images()), model(images()))
    with torch.no_grad():  # still the parameter, no value of before
        model[0].parametrizations.weight.original.mul_(-2).add_(0.1)
    assert torch.equal(recorded(images()), model(images()))


def test_fx_records_an_excited_layer_itself():
    layer = excite(nn.Conv2d(3, 4, 3), Location(SE()))
    recorded = torch.fx.symbolic_trace(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(-2)
    assert torch.equal(recorded(images()), layer(images()))


@pytest.mark.parametrize("change", ["excited", "attended", "both"])
def test_torchvisions_feature_extractor(change):
    pytest.importorskip("torchvision")
    from torchvision.models.feature_extraction import create_feature_extractor

    model = network()
    if change != "excited":
        model = attend(model, CBAM(), where="^1$").eval()
    if change != "attended":
        model = excite(model, EXCITATIONS["chain"])
    extractor = create_feature_extractor(model, {"1": "block", "3": "scores"})
    found = extractor(images())
    assert torch.equal(found["block"], model[:2](images()))
    assert torch.equal(found["scores"], model(images()))


# --- Export ---------------------------------------------------------------------------------------


@kinds
def test_export(excitation):
    model = excited(excitation)
    close(torch.export.export(model, (images(),)).module()(images()), model(images()))


def test_export_of_a_part_that_python_cannot_name():
    model = excite(nn.Sequential(nn.Conv2d(3, 4, 3)), [Standardize(), Global()]).eval()
    with pytest.raises(RuntimeError, match="chain with Global\\(\\): fold it first"):
        torch.export.export(model, (images(),))
    expected = model(images())
    close(torch.export.export(fold(model), (images(),)).module()(images()), expected)


@attentions
def test_export_of_an_attended_model(attention):
    model = attended(attention)
    close(torch.export.export(model, (images(),)).module()(images()), model(images()))


def run_onnx(file: io.BytesIO) -> torch.Tensor:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model = onnx.load_from_string(file.getvalue())
    onnx.checker.check_model(model, full_check=True)
    evaluator = ReferenceEvaluator(model)
    return torch.from_numpy(evaluator.run(None, {evaluator.input_names[0]: images().numpy()})[0])


@kinds
def test_onnx_export_that_traces_holds_the_excited_weights(excitation):
    onnx = pytest.importorskip("onnx")
    model, file = excited(excitation), io.BytesIO()
    torch.onnx.export(model, (images(),), file, dynamo=False)
    close(run_onnx(file), model(images()))
    operators = {node.op_type for node in onnx.load_from_string(file.getvalue()).graph.node}
    assert operators <= {"Conv", "Tanh", "Flatten", "Reshape", "Gemm", "Constant", "Identity"}
    torch.jit.trace(model, images())  # tracing goes on as before


@attentions
def test_onnx_export_that_traces_of_an_attended_model(attention):
    pytest.importorskip("onnx")
    model, file = attended(attention), io.BytesIO()
    torch.onnx.export(model, (images(),), file, dynamo=False)
    close(run_onnx(file), model(images()))


@pytest.mark.parametrize("kind", ["se", "artanh", "chain", "attended"])
def test_onnx_export(kind):
    pytest.importorskip("onnxscript")
    model = attended(CBAM()) if kind == "attended" else excited(EXCITATIONS[kind])
    file = io.BytesIO()
    torch.onnx.export(model, (images(),), file, dynamo=True, verbose=False)
    close(run_onnx(file), model(images()))


# --- Quantization ---------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [None, nn.Linear], ids=["convolutions", "linear"])
@kinds
def test_quantization_says_fold(excitation, where):
    from torch.ao.quantization import default_qconfig, prepare, quantize_dynamic

    model = excited(excitation, where)
    before = model(images())
    with pytest.raises(RuntimeError, match="cannot be quantized: fold it first"):
        quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    model.qconfig = default_qconfig
    with pytest.raises(RuntimeError, match="cannot be quantized: fold it first"):
        prepare(model)
    assert torch.equal(model(images()), before)
    assert not any(hasattr(part, "qconfig") for part in model[0].modules())
    quantized = quantize_dynamic(fold(network()), {nn.Linear}, dtype=torch.qint8)
    assert "quantized" in str(type(quantized[3]))


# --- torch.func -----------------------------------------------------------------------------------


def loss_of(model):
    fixed = dict(model.named_buffers())

    def loss(parameters):
        return functional_call(model, {**parameters, **fixed}, (images().double(),)).square().mean()

    return loss, {name: p.detach() for name, p in model.named_parameters()}


def gradient(model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(images().double()).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@kinds
def test_forward_derivative(excitation):
    model = excited(excitation).double()
    loss, parameters = loss_of(model)
    along = {name: torch.randn_like(p) for name, p in parameters.items()}
    expected = gradient(model)
    _, found = jvp(loss, (parameters,), (along,))
    torch.testing.assert_close(found, sum((expected[k] * along[k]).sum() for k in along))


@kinds
def test_second_derivatives(excitation):
    model = excited(excitation).double()
    loss, parameters = loss_of(model)
    name = "0.parametrizations.weight.original"

    def of_one(weight):
        return loss(parameters | {name: weight})

    torch.testing.assert_close(jacfwd(of_one)(parameters[name]), gradient(model)[name])
    weight = dict(model.named_parameters())[name]
    y = model(images().double()).square().mean()
    (first,) = torch.autograd.grad(y, weight, create_graph=True)
    rows = [torch.autograd.grad(g, weight, retain_graph=True)[0] for g in first.flatten()[::9]]
    found = hessian(of_one)(parameters[name]).reshape(-1, *weight.shape)[::9]
    torch.testing.assert_close(found, torch.stack(rows))


@kinds
def test_an_ensemble_by_vmap(excitation):
    models = [excited(excitation).double() for _ in range(2)]
    with torch.no_grad():
        for p in models[1].parameters():
            p.mul_(1.1)
    loss, _ = loss_of(models[0])
    states = [dict(model.named_parameters()) for model in models]
    stacked = {name: torch.stack([s[name].detach() for s in states]) for name in states[0]}
    found = vmap(grad(loss))(stacked)
    for i, model in enumerate(models):
        for name, expected in gradient(model).items():
            torch.testing.assert_close(found[name][i], expected)


# --- Sharded models -------------------------------------------------------------------------------


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(model: nn.Module, mesh) -> nn.Module:
    for layer in (model[0], model[1]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


@pytest.mark.parametrize("seen", [False, True], ids=["fresh", "after a forward pass"])
@pytest.mark.parametrize(
    "call, says",
    [
        (fold, "gather the full state_dict .* and fold that one"),
        (lambda m: save("x.safetensors", m, model="resnet18", classes=2), "gather .* save that"),
        (lambda m: precompute(m).__enter__(), "leave out precompute"),
        (lambda m: excite(m, Standardize(), where="3"), "excite the model before it is sharded"),
        (lambda m: attend(m, SE(), where="^1$"), "put attention on the model before"),
    ],
    ids=["fold", "save", "precompute", "excite", "attend"],
)
def test_what_needs_a_whole_model_says_so(mesh, monkeypatch, tmp_path, call, says, seen):
    monkeypatch.chdir(tmp_path)
    model = sharded(excited(EXCITATIONS["chain"]), mesh)
    before = model(images()) if seen else None
    with pytest.raises(ValueError, match=f"is sharded over processes: {says}"):
        call(model)
    after = model(images())
    assert before is None or torch.equal(after, before)
    assert torch.equal(after, excited(EXCITATIONS["chain"])(images())) and not os.listdir(tmp_path)


def test_a_sharded_plain_model_is_let_through(mesh):
    model = sharded(network(), mesh)
    with precompute(fold(model)):
        assert torch.equal(model(images()), network()(images()))


@kinds
def test_a_sharded_model_is_looked_at_and_paused(mesh, excitation):
    plain = excited(excitation)
    model = sharded(copy.deepcopy(plain), mesh)
    assert describe(model) == describe(plain)
    found, expected = inspect(model[0]), inspect(plain[0])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name != "gates":
            assert type(found[name]) is torch.Tensor and torch.equal(found[name], value)
    assert all(map(torch.equal, found.get("gates", ()), expected.get("gates", ())))
    for change in (pause, lambda m: resume(m, strength=0.5)):
        assert torch.equal(change(model)(images()), change(plain)(images()))


def test_the_gathered_state_dict_folds(mesh):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    model = sharded(excited(EXCITATIONS["chain"]), mesh)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    gathered = excited(EXCITATIONS["chain"])
    with pytest.warns(UserWarning, match="does not say what"):  # torch leaves metadata behind
        gathered.load_state_dict(state)
    assert torch.equal(fold(gathered)(images()), model(images()))


def test_two_processes_train_as_one(tmp_path):
    """Three filters on two processes: shards of different sizes."""
    script = tmp_path / "train.py"
    script.write_text(
        dedent(
            """
            import copy, sys, torch, torch.distributed as dist
            from torch import nn
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard
            from wexlib import *

            rank, folder = int(sys.argv[1]), sys.argv[2]
            torch.set_num_threads(1)
            store = dist.FileStore(folder + "/store", 2)
            dist.init_process_group("gloo", rank=rank, world_size=2, store=store)
            mesh = init_device_mesh("cpu", (2,))
            x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))

            def train(model):
                optimizer = torch.optim.SGD(model.parameters(), 0.1)
                for _ in range(2):
                    optimizer.zero_grad()
                    model(x).square().mean().backward()
                    optimizer.step()
                return average(model) if excitation == Global() else model

            chain = [Standardize(), Location(CBAM(), skips=True), Magnitude()]
            for excitation in (chain, Location(SE()), Global()):
                torch.manual_seed(0)
                plain = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3))
                excite(plain, excitation)
                model = copy.deepcopy(plain)
                for layer in model:
                    if list(layer.parameters()):
                        fully_shard(layer, mesh=mesh)
                train(fully_shard(model, mesh=mesh)), train(plain)
                for a, b in zip(model.parameters(), plain.parameters(), strict=True):
                    torch.testing.assert_close(a.full_tensor(), b.detach())
            dist.destroy_process_group()
            """
        )
    )
    words = [sys.executable, "-W", "ignore", str(script)]
    here = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    both = [subprocess.Popen([*words, str(rank), str(tmp_path)], env=here) for rank in (0, 1)]
    assert [one.wait(timeout=300) for one in both] == [0, 0]
