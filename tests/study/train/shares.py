"""Trains the plans of a folder, in one process or, by ``torchrun shares.py FOLDER``, in several."""

import json
import sys
from pathlib import Path

import numpy as np
from torch import distributed, nn

from study.data.loader import Data, load
from study.train import loop


class Stopped(Exception):
    pass


def masks() -> Data:
    """Images whose pixels' classes follow from their colours; of some few are of no class."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (24, 3, 6, 6), np.uint8)
    targets = images.argmax(1).astype(np.uint8)
    targets[generator.random(targets.shape) < generator.random((24, 1, 1))] = 255
    meta = {"dataset": "masks", "task": "segmentation", "classes": 3, "image_shape": (3, 6, 6)}
    meta |= {"mean": [0.5] * 3, "sd": [0.3] * 3, "pad": 1, "flip": True}
    return Data(meta, {split: (images, targets) for split in ("train", "validation", "test")})


def stop(_: loop.Sums) -> None:
    raise Stopped


def stopped(*given: object) -> None:
    """Train to the first time that the state within an epoch is kept."""
    kept = loop.Sums.leave_to_first, loop.SAVE_AFTER, loop.ASK_EVERY
    loop.Sums.leave_to_first, loop.SAVE_AFTER, loop.ASK_EVERY = stop, 0, 2
    try:
        list(loop.fit(loop.start(*given), *given))
    except Stopped:
        distributed.barrier()
    loop.Sums.leave_to_first, loop.SAVE_AFTER, loop.ASK_EVERY = kept


def rows_of(folder: Path) -> dict[str, list[dict]]:
    plans, rows = json.loads((folder / "plans.json").read_text()), {}
    for name, plan in plans.items():
        if plan["data"]["task"] == "segmentation":
            data = masks()
            run = loop.Run.of(nn.Conv2d(3, 3, 1), plan["train"])
            nn.init.constant_(run.model.weight, 0.1), nn.init.zeros_(run.model.bias)
            rows[name] = list(loop.fit(run, plan, data, 0))
            continue
        given = (
            plan,
            load(folder / "digits10"),
            0,
            folder / f"{loop.rank_and_world()[1]}, {name}.pt",
        )
        if name == "stopped" and distributed.is_initialized():
            stopped(*given)
        run = loop.start(*given)
        begun = run.within["steps"] if run.within else 0
        rows[name] = list(loop.fit(run, *given))
        rows[name][0]["begun"] = begun
    return rows


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    found = rows_of(Path(sys.argv[1]))
    Path(sys.argv[1], f"{distributed.get_rank()}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()
