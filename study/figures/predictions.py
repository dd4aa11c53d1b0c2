"""What trained networks make of test examples: masks and labels, beside the true ones."""

from collections.abc import Iterator

import torch
from matplotlib.figure import Figure

from study.data.loader import examples, load, loader
from study.figures import datasets
from study.figures.chapter import Chapter
from study.files import root
from wexlib import checkpoint
from wexlib.control import precompute


def show_predictions(chapter: Chapter, role: str, run: str) -> None:
    """Show a chapter's figures of a run's :func:`predictions`, or say what they need."""
    try:
        for name, figure in predictions(chapter.scale, role, run):
            chapter.show(figure, name)
    except (FileNotFoundError, ValueError):
        print(f"This figure needs the network of {run} and its data at scale {chapter.scale}.")


def predictions(scale: str, role: str, run: str, count: int = 8) -> Iterator[tuple[str, Figure]]:
    """Figures with their names, of a run's first network on the first test examples of its role.

    Of a segmentation the true masks, then the predicted ones; of clips one, whose rows say both.

    Raises:
        FileNotFoundError, ValueError: the run's network, or its data, are not there.
    """
    model = checkpoint.load(root() / "models" / scale / f"{run}.safetensors")
    data = load(root() / "data" / scale / role)
    inputs, targets = next(iter(loader(data, "test", batch_size=min(count, data.count("test")))))
    with torch.inference_mode(), precompute(model):
        output = model(inputs)
        found = (output if isinstance(output, torch.Tensor) else output["out"]).argmax(1)
    shown, _ = examples(data, "test", range(len(inputs)))
    names = data.meta["class_names"]
    if data.task == "segmentation":
        for name, masks in (("true", targets), ("predicted", found)):
            title = f"Test images of {data.meta['dataset']}, {name} masks ({run})"
            yield f"masks_{name}", datasets.scenes(shown, masks.numpy(), names, title)
    else:
        rows = [f"{names[t]}, taken for {names[f]}" for t, f in zip(targets, found, strict=True)]
        title = f"Test clips of {data.meta['dataset']} ({run})"
        yield "clips", datasets.clips(shown, rows, title)
