"""Initial values: the sheet's section 1.6 as one table, drawn for each parameter from the seed and its name alone.

Sharding, construction order and the rest of the model therefore change nothing: an encoder starts alike under every
objective, and a model built on the meta device alike to one built in memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from models.classifier import Classifier
from models.config import CONV_WIDTH
from models.encoder import Encoder
from models.tables import WithTables

Rule = Callable[[Tensor, torch.Generator], object]


def _uniform(bound: float) -> Rule:
    return lambda tensor, generator: tensor.uniform_(-bound, bound, generator=generator)


def _normal(std: float) -> Rule:
    """Truncated at +-2 as in timm, which for these deviations truncates nothing."""
    return lambda tensor, generator: nn.init.trunc_normal_(tensor, std=std, generator=generator)


def _fan_in(tensor: Tensor) -> int:
    return tensor[0].numel()


def _linear(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """The framework's default, Kaiming-uniform with a = sqrt(5)."""
    return _uniform(_fan_in(tensor) ** -0.5)(tensor, generator)  # type: ignore[return-value]


def _xavier(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return nn.init.xavier_uniform_(tensor, generator=generator)


def _lecun(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Normal of variance 1 / fan-in, truncated at two deviations, whose own deviation 0.8796 is made up for."""
    std = _fan_in(tensor) ** -0.5 / 0.87962566103423978
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std, generator=generator)


def _A_log(tensor: Tensor, generator: torch.Generator) -> Tensor:  # noqa: N802
    """S4D-real: log(1 .. state) in every channel."""
    return tensor.copy_(torch.arange(1, tensor.shape[1] + 1).log().expand_as(tensor))


def _dt_bias(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Softplus of it is log-uniform in [1e-3, 1e-1], at least 1e-4 (Gu and Dao 2023)."""
    tensor.uniform_(math.log(1e-3), math.log(1e-1), generator=generator)
    step = tensor.exp().clamp(min=1e-4)
    return tensor.copy_(step + torch.log(-torch.expm1(-step)))


def _ones(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return tensor.fill_(1.0)


def _zeros(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return tensor.zero_()


def rules(depth: int, head_std: float) -> tuple[tuple[str, Rule], ...]:
    """(pattern of the parameter's name, rule), first match wins.

    Transformer blocks, the ViT's too, are Xavier as in ARM's and MAE's decoders; learned positions start as Vim's do.
    What leads into a decoder and out of it is torch's own for a linear layer in both objectives, as in ARM's code;
    MAE's has Xavier there, and for the patches.
    """
    return (
        ("encoder.embedding.patch.weight", _lecun),
        ("encoder.embedding.cls_token", _normal(0.02)),
        ("encoder.embedding.pos_embed", _normal(0.02)),
        ("*.mixer.conv.*", _uniform(CONV_WIDTH**-0.5)),
        ("*.mixer.dt_proj.weight", _linear),
        ("*.mixer.scan.A_log", _A_log),
        ("*.mixer.scan.D", _ones),
        ("*.mixer.scan.dt_bias", _dt_bias),
        ("*.mixer.out_proj.weight", lambda tensor, generator: _linear(tensor, generator).div_(math.sqrt(depth))),
        ("decoder.token", _normal(0.02)),
        ("head.weight", _normal(head_std)),
        ("*norm*.weight", _ones),
        ("*.bias", _zeros),
        ("*.attention.*.weight", _xavier),
        ("*.mlp.fc?.weight", _xavier),
        ("*.weight", _linear),
    )


READOUT_POWERS = {"head.weight": 1.0, "decoder.from_encoder.weight": 0.5}
"""Under muP the deviation of a readout falls as 1 / width (arXiv 2203.03466, table 3); the rules above draw the head
with one deviation at every width, and decoders' inputs with width^-1/2. All other matrices already are as muP wants."""


def canonical(name: str) -> str:
    """A parameter's name inside the wrapped module, whether it was read there or on the objective around it."""
    return name.removeprefix("module.")


def generator_of(seed: int, name: str) -> torch.Generator:
    """The generator of one parameter."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def write(parameter: Tensor, full: Tensor) -> None:
    """Copies the whole tensor `full` into `parameter`, of which a DTensor's rank takes its own part."""
    with torch.no_grad():
        if isinstance(parameter, DTensor):
            full = full.to(device=parameter.device_mesh.device_type, dtype=parameter.dtype)
            mine = distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.to_local().copy_(mine.to_local())
        else:
            parameter.copy_(full)


@torch.no_grad()
def initialize(module: nn.Module, seed: int) -> None:
    """Draws all parameters of an objective or of the module in it, and fills its tables. They must have memory."""
    parameters = {canonical(name): parameter for name, parameter in module.named_parameters()}
    encoder = next(part.config for part in module.modules() if isinstance(part, Encoder))
    head_std = next((part.config.head_std for part in module.modules() if isinstance(part, Classifier)), 0.0)
    table = rules(encoder.depth, head_std)
    for name, parameter in parameters.items():
        rule = next(rule for pattern, rule in table if fnmatchcase(name, pattern))
        full = torch.empty(parameter.shape)
        rule(full, generator_of(seed, name))
        if name in READOUT_POWERS:
            full.mul_(encoder.width_ratio ** -READOUT_POWERS[name])
        write(parameter, full)
    for part in module.modules():
        if isinstance(part, WithTables):
            part.fill_tables()
