"""Trains a module that has the official names under ZeRO and leaves its checkpoint, and its weights as they then are.

Called with an official checkpoint and the folder to write into.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from scaling.engines.zero import _deepspeed
from scaling.environment import Rank


class Named(nn.Module):
    """Parameters under dotted names; the loss makes each of them move."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            place: nn.Module = self
            for part in path:
                if not hasattr(place, part):
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_parameter(last, nn.Parameter(tensor.clone()))

    def forward(self, scale: Tensor) -> Tensor:
        return scale * sum((parameter - 1).square().sum() for parameter in self.parameters())


if __name__ == "__main__":
    official, folder = Path(sys.argv[1]), Path(sys.argv[2])
    rank = Rank()
    rank.join()
    module = Named(torch.load(official, weights_only=True)["model"])
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2, "reduce_bucket_size": 10**6}}
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    engine, *_ = _deepspeed(rank).initialize(model=module, optimizer=optimizer, config=settings)
    engine.backward(engine(torch.tensor(1.0)))
    engine.step()
    engine.save_checkpoint(folder / "saved", tag="last")
    torch.save({"model": dict(module.state_dict())}, folder / "expected.pth")
    rank.leave()
