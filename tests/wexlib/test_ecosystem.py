"""docs/libraries.md: every example of the page is run as it stands; its numbers are compared."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs/libraries.md").read_text(encoding="utf-8")
#: Title -> the code of a section; the first has what all others go on from.
CODE = {
    title: "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    for title, text in re.findall(r"^##? (.+?)\n(.*?)(?=^##? |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
START = "With other libraries"

# The libraries' own warnings are theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Runs a section in an empty folder and returns its names; skips without its packages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Inductor compiles for minutes; what it would compile is the same.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))

    def run(title: str, *packages: str) -> dict:
        for package in packages:
            pytest.importorskip(package)
        torch.manual_seed(0)
        names: dict = {}
        for part in (START, title):
            exec(compile(CODE[part], f"docs/libraries.md, {part}", "exec"), names)
        return names

    return run


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    assert one.isfinite().all() and one.std() > 0
    assert torch.equal(one, other)


def assert_close(one: torch.Tensor, other: torch.Tensor) -> None:
    assert one.isfinite().all() and one.std() > 0
    assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def assert_read(one: torch.nn.Module, other: torch.nn.Module, ids: torch.Tensor) -> None:
    """The same numbers; where a file puts them in memory may change an output's last bits."""
    state, expected = one.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)
    assert_close(one(ids).logits, other(ids).logits)


def is_plain(model: torch.nn.Module) -> bool:
    return not any("parametrizations" in key for key in model.state_dict())


def test_every_example_is_run():
    text = Path(__file__).read_text(encoding="utf-8")
    assert {title for title, code in CODE.items() if code} == {
        START,
        *re.findall(r'ran\("([^"]+)', text),
    }


def test_timm(ran):
    names = ran("timm", "timm")
    assert_same(names["plain"].eval()(names["images"]), names["scores"])
    assert all(p.grad is None or p.grad.isfinite().all() for p in names["model"].parameters())


def test_transformers(ran):
    names = ran("transformers", "transformers", "accelerate")
    model, plain = names["GPT2LMHeadModel"], names["plain"]
    ids = names["texts"][0]["input_ids"][None]
    assert_same(names["model"](ids).logits, names["scores"])
    assert_read(plain, names["model"], ids)
    assert plain.lm_head.weight is plain.transformer.wte.weight
    again = names["excite"](
        model(names["config"]), names["Location"](names["SE"]()), where=names["Conv1D"]
    )
    trainer = names["Trainer"](again, names["settings"], train_dataset=names["texts"])
    trainer.train(resume_from_checkpoint=True)
    assert_same(again.eval()(ids).logits, names["scores"])

    assert names["tied"].lm_head.weight is names["tied"].transformer.wte.weight
    assert_same(names["tied"](ids).logits, names["expected"])
    assert_read(model.from_pretrained("tied"), names["tied"], ids)

    assert_same(names["after"], names["before"])
    assert all(p.grad is not None for p in names["vit"].parameters() if p.requires_grad)


def test_lightning(ran):
    names = ran("Lightning", "lightning")
    images = names["images"]
    assert_same(names["task"].model.eval()(images), names["scores"])
    assert_same(names["again"].model(images), names["scores"])
    assert is_plain(names["again"])


def test_accelerate(ran):
    names = ran("accelerate", "accelerate")
    assert_same(names["plain"](names["images"]), names["scores"])
    assert is_plain(names["plain"])


def test_cuda_graphs(ran):
    names = ran("CUDA graphs")
    assert 0 < names["result"] < names["loss"](names["excited"]()(names["images"]), names["labels"])
    assert names["rate"].item() == pytest.approx(0.1 / 6)
    assert names["optimizer"].param_groups[0]["lr"] is names["rate"]


def test_optimizers(ran):
    names = ran("Optimizers")
    grouped = [p for group in names["optimizer"].param_groups for p in group["params"]]
    assert len(grouped) == len({*grouped}) and {*grouped} == {*names["model"].parameters()}
    assert names["groups"]["weights"] and names["groups"]["nets"]


def test_averages(ran):
    names = ran("Averages")
    assert_same(names["plain"].eval()(names["images"]), names["scores"])


def test_compiled(ran):
    names = ran("torch.compile")
    for outputs in (names["same"], names["folded"], names["model"](names["images"])):
        assert_close(outputs, names["scores"])


def test_exported(ran):
    names = ran("torch.export")
    assert not any("parametrizations" in key for key in names["program"].state_dict)
    assert_same(names["model"](names["images"]), names["scores"])
    assert_close(names["outputs"], names["scores"])
    assert names["program"].module()(names["images"][:3]).shape == (3, 10)


def test_onnx(ran):
    names = ran("ONNX", "onnx", "onnxscript", "onnxruntime")
    assert_same(names["model"](names["images"]), names["scores"])
    assert_close(torch.from_numpy(names["outputs"]), names["scores"])


def test_safetensors(ran):
    names = ran("safetensors")
    for name in ("again", "plain"):
        assert_same(names[name](names["images"]), names["scores"])


def test_writes(ran):
    names = ran("What cannot be seen")
    assert_same(names["vanished"], names["unchanged"])
    with pytest.raises(RuntimeError, match="write to the stored weight"):
        _ = names["layer"].weight
