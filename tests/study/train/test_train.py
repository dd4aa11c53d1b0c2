"""One run: its streams, its loop against one written out by hand, its end and its resumption."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from study.data.datasets import prepare
from study.data.loader import load, loader
from study.data.sources import DATASETS
from study.files import root
from study.plan import config
from study.plan.keys import WE
from study.train import loop as train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits10"
    prepare("digits10", folder, train=120, validation=40, test=60)
    return load(folder)


@pytest.fixture
def plan():
    plan = config.plan_playground(config.read(root(), "smoke"), "smoke", DATASETS)
    plan["train"] |= {"epochs": 3, "batch": 50, "schedule": "onecycle", "lr": 0.02}
    return plan


def _rows(plan, data, seed=0, **options):
    run = train.start(plan, data, seed, **options)
    return run, list(train.fit(run, plan, data, seed, **options))


def test_streams_differ_by_purpose_and_by_seed():
    purposes = [(p, s) for p in ("backbone", "attention", "batches") for s in range(50)]
    assert len({train.derive(s, p) for p, s in purposes}) == len(purposes)
    # SHA-256 of b"backbone 0" begins with these eight bytes.
    import hashlib

    expected = int(hashlib.sha256(b"backbone 0").hexdigest()[:16], 16) // 2
    assert train.derive(0, "backbone") == expected < 2**63


VARIANTS = {
    "plain": {},
    "se": {"attention": "se"},
    "ours-ws": {"standardize": True, "attention": "cbam", "skips": True},
    "mwe": {"magnitude": "artanh"},
}


def test_the_backbone_and_the_batches_are_the_same_whatever_is_attached(plan, data):
    def raw(model):
        return {
            name.replace("parametrizations.", "").removesuffix(".original"): value
            for name, value in model.state_dict().items()
            if "parametrizations" not in name or name.endswith("original")
        }

    off = {k: default for k, (_, default) in WE.items()}
    starts, batches = [], []
    for variant in VARIANTS.values():
        plan["we"] = off | variant
        starts.append(raw(train.start(plan, data, 3).model))
        split = train.loaders(data, plan, 3, CPU)["train"]
        batches.append([(x.clone(), y.clone()) for x, y in split])
    for start, batch in zip(starts[1:], batches[1:], strict=True):
        assert start.keys() == starts[0].keys()
        assert all(torch.equal(start[name], starts[0][name]) for name in start)
        for (x, y), (x0, y0) in zip(batch, batches[0], strict=True):
            assert torch.equal(x, x0) and torch.equal(y, y0)


STEPS = [  # schedule, step of 4 an epoch, expected multiple of lr; 10 epochs
    ("constant", 39, 1.0),
    ("step", 0, 1.0),
    ("step", 11, 1.0),
    ("step", 12, 0.1),
    ("step", 24, 0.01),
    ("cosine", 0, 1.0),
    ("cosine", 20, 0.5),
    ("cosine", 30, 0.5 * (1 - math.sqrt(0.5))),
    ("onecycle", 0, (1 / 41) / 0.3),
    ("onecycle", 39, (1 / 41) / 0.7),
    ("onecycle", 19, (21 / 41) / 0.7),
]


@pytest.mark.parametrize(("schedule", "step", "expected"), STEPS)
def test_learning_rates_by_hand(schedule, step, expected):
    recipe = {"lr": 0.2, "epochs": 10, "schedule": schedule, "milestones": [3, 6], "gamma": 0.1}
    assert train.learning_rate(recipe, step, 4) == pytest.approx(0.2 * expected, rel=1e-12)


def test_fit_is_the_loop_written_out(plan, data):
    """SGD with momentum and decay by their formulas, over the loader's batches."""
    # A decay that shows, and steps so small that rounding does not grow.
    plan["train"] |= {"lr": 0.005, "weight_decay": 0.5}
    _, rows = _rows(plan, data)
    recipe = plan["train"]
    model = train.start(plan, data, 0).model
    split = train.loaders(data, plan, 0, CPU)["train"]
    buffers = {name: None for name, _ in model.named_parameters()}
    for epoch in range(recipe["epochs"]):
        split.epoch = epoch
        losses, right, steps = 0.0, 0, len(split)
        model.train()
        for i, (x, y) in enumerate(split):
            t = (epoch * steps + i + 1) / (steps * recipe["epochs"] + 1)
            lr = recipe["lr"] * min(t / 0.3, (1 - t) / 0.7)
            scores = model(x)
            loss = -scores.log_softmax(1)[torch.arange(len(y)), y].mean()
            model.zero_grad()
            loss.backward()
            losses, right = losses + loss.item() * len(y), right + (scores.argmax(1) == y).sum()
            with torch.no_grad():
                for name, p in model.named_parameters():
                    g = p.grad + recipe["weight_decay"] * p
                    b = buffers[name]
                    buffers[name] = g if b is None else recipe["momentum"] * b + g
                    p -= lr * buffers[name]
        assert rows[epoch]["train_loss"] == pytest.approx(losses / 120, rel=2e-3)
        assert rows[epoch]["lr"] == pytest.approx(lr)
    assert rows[-1]["train_accuracy"] == pytest.approx(100 * right.item() / 120, abs=2)


def test_evaluation_is_the_mean_over_images(plan, data):
    run, _ = _rows(plan, data)
    images = loader(data, "test", batch_size=7)
    measured = train.Evaluation(run.model, plan, data.classes)(images)
    run.model.eval()
    with torch.no_grad():
        each = [
            (F.cross_entropy(run.model(x[i : i + 1]), y[i : i + 1]), run.model(x[i : i + 1]), y[i])
            for x, y in images
            for i in range(len(y))
        ]
    assert len(each) == 60
    assert measured["loss"] == pytest.approx(sum(e[0].item() for e in each) / 60, rel=1e-5)
    right = sum((e[1].argmax() == e[2]).item() for e in each)
    assert measured["accuracy"] == pytest.approx(100 * right / 60)


def test_two_runs_agree_to_the_last_bit(plan, data):
    first, rows = _rows(plan, data)
    second, again = _rows(plan, data)
    assert rows == again
    for a, b in zip(
        first.model.state_dict().values(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_run_that_stopped_goes_on_to_the_last_bit(plan, data, tmp_path, after, optimizer):
    plan["train"]["optimizer"] = optimizer
    whole, rows = _rows(plan, data)
    saved = tmp_path / "0.pt"
    run = train.start(plan, data, 0, saved)
    for _, _row in zip(range(after), train.fit(run, plan, data, 0, saved), strict=False):
        torch.rand(3)  # what else draws from the global stream does not matter
    resumed = train.start(plan, data, 0, saved)
    assert len(resumed.history) == after
    list(train.fit(resumed, plan, data, 0, saved))
    assert resumed.history == rows
    for a, b in zip(
        whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 2, 4, 7])
@pytest.mark.parametrize("we", [{}, {"attention": "cbam", "pretrain": 1}], ids=["plain", "later"])
@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_run_that_was_killed_within_an_epoch_goes_on_to_the_last_bit(
    plan, data, tmp_path, monkeypatch, at, we, precision
):
    """Three epochs of three steps, with dropout, killed after ``at`` of them."""
    plan["we"] = {key: default for key, (_, default) in WE.items()} | we
    plan["model_options"] |= {"dropout": 0.3}
    plan["train"]["precision"] = precision
    whole, rows = _rows(plan, data)
    monkeypatch.setattr(train, "SAVE_AFTER", 0)
    saved, steps, cross_entropy = tmp_path / "0.pt", [], train.cross_entropy

    def killed(scores, targets, reduction="mean"):
        steps.append(reduction)
        if steps.count("mean") > at:
            raise Killed
        return cross_entropy(scores, targets, reduction)

    monkeypatch.setattr(train, "cross_entropy", killed)
    with pytest.raises(Killed):
        list(train.fit(train.start(plan, data, 0, saved), plan, data, 0, saved))
    monkeypatch.setattr(train, "cross_entropy", cross_entropy)
    resumed = train.start(plan, data, 0, saved)
    assert (len(resumed.history), resumed.within and resumed.within["steps"]) == (
        (at // 3, at % 3) if at % 3 else (at // 3, None)
    )
    list(train.fit(resumed, plan, data, 0, saved))
    assert resumed.history == rows
    for a, b in zip(
        whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_state_is_noticed_and_trained_anew(plan, data, tmp_path, capsys, damage):
    _, rows = _rows(plan, data)
    saved = tmp_path / "0.pt"
    next(train.fit(train.start(plan, data, 0, saved), plan, data, 0, saved))
    contents = bytearray(saved.read_bytes())
    contents[len(contents) // 2] ^= 1
    kept = {"flip": len(contents), "cut": len(contents) // 2, "empty": 0}[damage]
    saved.write_bytes(contents[:kept])
    run = train.start(plan, data, 0, saved)
    assert f"{saved} is damaged: this seed is trained anew" in capsys.readouterr().out
    assert run.history == [] and list(train.fit(run, plan, data, 0, saved)) == rows


ATTACHED_LATER = {
    "paused": {"attention": "se", "pause": 2},
    "ramped": {"magnitude": "artanh", "pause": 1, "ramp": 1},
    "pretrained": {"attention": "cbam", "pretrain": 2, "start": "identity"},
}


@pytest.mark.parametrize("name", ATTACHED_LATER)
def test_before_its_epoch_a_run_is_the_plain_one_to_the_last_bit(plan, data, tmp_path, name):
    """And it goes on to the last bit from a checkpoint of then, over the epoch that switches."""
    never = {key: default for key, (_, default) in WE.items()}
    plan["we"] = never
    _, plain = _rows(plan, data)
    plan["we"] = never | ATTACHED_LATER[name]
    whole, rows = _rows(plan, data)
    off = plan["we"]["pause"] + plan["we"]["pretrain"]
    assert rows[:off] == plain[:off]
    assert rows[off] != plain[off]
    saved = tmp_path / "0.pt"
    run = train.start(plan, data, 0, saved)
    for _, _row in zip(range(off), train.fit(run, plan, data, 0, saved), strict=False):
        pass
    resumed = train.start(plan, data, 0, saved)
    list(train.fit(resumed, plan, data, 0, saved))
    assert resumed.history == rows
    for a, b in zip(
        whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_names_its_step(plan, data, tmp_path):
    saved = tmp_path / "0.pt"
    run = train.start(plan, data, 0, saved)
    epochs = train.fit(run, plan, data, 0, saved)
    next(epochs)
    kept = saved.read_bytes()
    with torch.no_grad():
        run.model.fc.bias[0] = float("nan")
    sentence = r"playground: the loss is not finite at step 1 of epoch 2 \(seed 0\): lower train.lr"
    with pytest.raises(FloatingPointError, match=sentence):
        next(epochs)
    assert saved.read_bytes() == kept


def test_narrow_strided_projections_are_refused_in_channels_last(plan, data):
    plan = copy.deepcopy(plan)
    plan["model_options"] = {"width": 4}
    plan["train"]["channels_last"] = True
    with pytest.raises(ValueError, match="layer2.0.downsample.0: a strided 1×1 .* of 4 channels"):
        train.start(plan, data, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_the_same_run(plan, data):
    plan["train"] |= {"precision": "bf16", "channels_last": True}
    run, rows = _rows(plan, data)
    assert next(run.model.parameters()).is_cuda
    assert all(math.isfinite(row["train_loss"]) for row in rows)
