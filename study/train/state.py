"""The state of a run, from which it goes on, and its optimizer."""

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from study.files import write
from study.plan.network import attach


def optimizer_of(model: nn.Module, train: dict) -> torch.optim.Optimizer:
    """All parameters in one group, attention, biases and norms decayed too: the authors' choice."""
    options = {"lr": train["lr"], "weight_decay": train["weight_decay"], "fused": True}
    if train["optimizer"] == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), momentum=train["momentum"], **options)
        # Torch leaves them unfilled when the scaler skips the first step (2.15).
        for p in model.parameters() if train["precision"] == "fp16" and train["momentum"] else ():
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[train["optimizer"]]
    on_gpu = next(model.parameters()).is_cuda
    return kind(model.parameters(), capturable=on_gpu, **options)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """On a GPU it is a tensor, so that a captured step reads it."""
    for group in optimizer.param_groups:
        on = group["params"][0].device
        if on.type == "cpu":
            group["lr"] = rate
        elif isinstance(group["lr"], Tensor) and group["lr"].device == on:
            group["lr"].fill_(rate)
        else:
            group["lr"] = torch.tensor(rate, device=on)


@dataclass
class Run:
    """The state of one seed's training, all that is needed to go on.

    ``history`` holds one row an epoch; ``within`` how many steps of the next one are done, their
    sums and the random numbers' state; ``seconds`` is the time spent, over every start.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    history: list[dict] = field(default_factory=list)
    within: dict | None = None
    seconds: float = 0.0

    @classmethod
    def of(cls, model: nn.Module, train: dict) -> "Run":
        on = next(model.parameters()).device.type
        scaler = torch.amp.GradScaler(on, enabled=train["precision"] == "fp16")
        return cls(model, optimizer_of(model, train), scaler)

    def excite(self, plan: dict, seed: int) -> None:
        """Attach the excitation to the plain network that was trained so far."""
        attach(self.model, plan["we"], seed)
        self.optimizer = optimizer_of(self.model, plan["train"])

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "within": self.within,
            "seconds": self.seconds,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        contents = buffer.getvalue()
        # Its digest first: torch reads a changed byte as another weight.
        sealed = hashlib.sha256(contents).digest() + contents
        write(path, lambda temporary: temporary.write_bytes(sealed))

    @staticmethod
    def read(path: Path) -> dict | None:
        """The state that :meth:`save` wrote; none where there is no file, or a damaged one."""
        if not path.is_file():
            return None
        sealed = path.read_bytes()
        if hashlib.sha256(sealed[32:]).digest() == sealed[:32]:
            return torch.load(io.BytesIO(sealed[32:]), weights_only=True, map_location="cpu")
        print(f"{path} is damaged: this seed is trained anew", flush=True)
        return None

    def restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history, self.within = state["history"], state["within"]
        self.seconds = state["seconds"]


def random_state() -> list[Tensor]:
    states = [torch.get_rng_state()]
    return states + ([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])


def set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)
