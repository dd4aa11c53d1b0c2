"""What the benchmarks compare with, count and write. Nothing here is asserted by a clock."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from clones import PROJECT
from torch import nn

from benchmarks import naive
from benchmarks.cases import METHODS
from benchmarks.counting import Held, Operations, Traffic
from wexlib import SE, Location
from wexlib.parametrization import chain

PAIRS = METHODS | {"SE without standardization": (Location(SE()), naive.PlainSE)}
LAYERS = {
    "3x3": lambda: nn.Conv2d(32, 16, 3),
    "1x1": lambda: nn.Conv2d(32, 16, 1),
    "stem": lambda: nn.Conv2d(3, 16, 7),
    "grouped": lambda: nn.Conv2d(32, 16, 3, groups=4),
}


def both(pair: str, layer: str, dtype: torch.dtype):
    """The two excitations with the same nets, and a weight."""
    torch.manual_seed(0)
    excitation, theirs = PAIRS[pair]
    conv = LAYERS[layer]().to(dtype)
    ours = chain(excitation).build(conv.weight, groups=conv.groups)
    theirs = theirs(conv.weight, conv.groups).to(dtype)
    own = {".".join(name.split(".")[-2:]): p for name, p in ours.named_parameters()}
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(own.pop(name).view_as(parameter))
    assert not own, "the naive layer has not all of wexlib's parameters"
    return ours, theirs, conv.weight.detach()


def differentiated(module, weight):
    """The excited weight, and the gradients of its product with a fixed tensor, by name."""
    weight = weight.clone().requires_grad_()
    out = module(weight)
    fixed = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    out.backward(fixed.to(out.dtype))  # the same number in every precision
    named = {".".join(n.split(".")[-2:]): p.grad for n, p in module.named_parameters()}
    return out.detach(), {"weight": weight.grad} | named


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("pair", PAIRS)
def test_naive_layers_are_wexlibs(pair, layer):
    ours, theirs, weight = both(pair, layer, torch.float64)
    (out, gradients), (expected, reference) = (
        differentiated(ours, weight),
        differentiated(theirs, weight),
    )
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert gradients.keys() == reference.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, reference[name].view_as(gradient), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-4), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("pair", PAIRS)
def test_in_lower_precision_within_rounding(pair, layer, dtype, bound):
    """Of the exact values for the same rounded weight and nets, relative to the largest."""
    ours, theirs, weight = both(pair, layer, dtype)
    (out, gradients), (expected, reference) = (
        differentiated(ours, weight),
        differentiated(theirs.double(), weight.double()),
    )
    for got, exact in [(out, expected), *((gradients[n], reference[n]) for n in gradients)]:
        error = (got.double() - exact.view_as(got)).abs().max()
        assert error <= bound * max(exact.abs().max().item(), 1e-3)


def test_bytes_of_operations_worked_by_hand():
    x, y = torch.ones(1000), torch.ones(10, 100)
    place, one = torch.tensor([3]), torch.ones(1)

    def counted(operation):
        with Traffic() as traffic:
            operation()
        return traffic.bytes

    assert counted(lambda: x * x) == 12_000  # two reads and a write
    assert counted(lambda: x.mul_(2)) == 8_000
    assert counted(lambda: torch.add(x, 1, out=torch.empty(1000))) == 8_000
    assert counted(lambda: x.view(10, 100).t()) == 0
    assert counted(lambda: y.t().contiguous()) == 8_000
    assert counted(lambda: x * one.expand(1000)) == 8_004
    assert counted(lambda: y.sum(1)) == 4_040
    assert counted(lambda: y.new_ones(5)) == 20
    assert counted(lambda: x.scatter_add_(0, place, one)) == 16  # index, source, target twice

    def gradient():
        w = x.clone().requires_grad_()
        (w * w).sum().backward()

    # Clone, product, sum; backward, the sum's own gradient, two products with it, and their sum.
    assert counted(gradient) == 8_000 + 12_000 + 4_004 + 4 + 2 * 8_004 + 12_000


def test_bytes_held_worked_by_hand():
    x = torch.ones(1000)
    with Held() as held:
        a = x * 2
        b = a + 1
        view = b.view(10, 100)
        assert (held.now, held.peak) == (8_000, 8_000)
        del b
        assert held.now == 8_000  # the view keeps it
        del view
        assert held.now == 4_000
        a.add_(1)
        assert (held.now, held.peak) == (4_000, 8_000)


COLUMNS = {
    "train": "device batch memory_format precision way method form ms ms_low ms_high ratio "
    "ratio_low ratio_high rounds tflops bar",
    "exact": "device method dtype forward gradient bar shapes",
    "bits": "device method what steps apart numbers",
    "launches": "device way method form counted kernels loops host",
    "inference": "device batch method form ms ms_low ms_high ratio ratio_low ratio_high rounds",
    "scaling": "device axis value method form ms ms_low ms_high weights_mb floor_ms bandwidth_gb_s",
    "passes": "method form memory_format way passes floor",
    "memory": "device batch method form peak_mb more_mb weights_mb multiple bar",
    "cost": "method parameters flops train_ms train_low train_high inference_ms inference_low "
    "inference_high batch",
    "loader": "device loader images_per_s images_per_s_low images_per_s_high batch rounds",
    "loading": "device loader images_per_s images_per_s_low images_per_s_high share megabytes "
    "batch rounds",
    "recipe": "device batch choice ms ms_low ms_high ratio ratio_low ratio_high rounds",
    "allocator": "device method batch memory_format freed ms ms_low ms_high ratio ratio_low "
    "ratio_high pages rounds",
    "epoch": "device method part seconds share images evaluated batch floor_s rate_gflops",
    "start": "what s s_low s_high rounds",
}


def test_the_quick_run_writes_every_table(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", str(tmp_path)]
    subprocess.run(command, cwd=PROJECT, env=environment, check=True)
    read = {path.stem: pd.read_csv(path) for path in tmp_path.glob("*.csv")}
    assert read.keys() == COLUMNS.keys()
    for name, frame in read.items():
        assert list(frame) == [*COLUMNS[name].split(), "machine", "torch", "date"]
    report = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert report.count("\n## ") == len(COLUMNS) + 1  # two tables of train
    control = read["train"].query("form == 'control'")
    assert len(control) == read["train"].groupby(["memory_format", "precision"]).ngroups
    parts = read["epoch"].groupby("method")["share"].sum()
    assert (read["epoch"]["floor_s"] > 0).all()
    # Each share is written with six digits.
    assert parts.to_list() == pytest.approx([1] * len(parts), abs=1e-5)
    total = (
        read["passes"]
        .query("way == 'both'")
        .pivot_table(index=["memory_format", "method"], columns="form", values="passes")
    )
    assert (total["ours"] < total["naive"]).all()
    assert (read["passes"]["passes"] > read["passes"]["floor"]).all()


def test_the_command_for_a_gpu_is_tried_without_one(tmp_path):
    """Every line of it but the clock of a GPU and the capture; others' results stay."""
    there = pd.DataFrame({"device": ["cuda", "cpu"], "method": "SE", "dtype": "float32"})
    there.assign(forward=1e-7, gradient=1e-6, bar=1e-3, shapes=8).to_csv(tmp_path / "exact.csv")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks", "gpu", "--out", str(tmp_path)]
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("this tries the command")
    read = {path.stem: pd.read_csv(path) for path in tmp_path.glob("*.csv")}
    assert read.keys() == {"exact", "bits", "inference", "train", "launches"}
    exact = read["exact"]
    assert (exact["device"] == "cuda").sum() == 1 < (exact["device"] == "cpu").sum()
    assert (exact[["forward", "gradient"]].max(axis=1) <= exact["bar"]).all()
    assert (read["bits"]["apart"] == 0).all()
    forms = read["train"].groupby("way")["form"].unique().map(set)
    assert forms["eager"] == {"plain", "control", "ours", "layer by layer", "naive"}
    assert forms["captured"] == {"plain", "control", "ours", "naive"}
    assert (read["train"]["tflops"] > 0).all()
    counts = (
        read["launches"]
        .query("way == 'eager'")
        .pivot_table(index="method", columns="form", values=["kernels", "loops"])
    )
    methods = list(METHODS)
    assert (counts["kernels"]["ours"] < counts["kernels"]["naive"])[methods].all()
    assert (counts["loops"]["naive"] == 0)[methods].all()
    report = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert "| operations and loops |" in report and "captured" in report


def test_operations_and_loops_counted_by_hand():
    x = torch.ones(4, 2, 3, 3)
    with Operations() as counted:
        y = (x * x).view(4, -1).sum(1)
        torch.empty(3).copy_(y[:3])
    assert (counted.torchs, counted.loops) == (3, 0)
    excitation = chain(METHODS["SE"][0]).build(x)
    with Operations() as counted, torch.no_grad():
        excitation(torch.randn(4, 2, 3, 3))
    assert counted.loops == 2  # what is looked at, and the result
