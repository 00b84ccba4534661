"""What a run needs of its shards, found out when it is planned and again when it starts."""

from __future__ import annotations

from collections.abc import Callable

from data.index import Index, read_index, split_folder
from scaling.config import RunConfig
from scaling.errors import UserError


def split_index(shards: str, split: str) -> Index:
    """The index of a split; UserError where there is none."""
    return read_index(split_folder(shards, split))


def require_split(config: RunConfig, index_of: Callable[[str, str], Index]) -> None:
    """What one run needs of its training and test split, of which `index_of` gives the indexes (`split_index`)."""
    shards = config.data.shards
    trained = index_of(shards, "train")
    if config.train.global_batch > trained.samples:
        name = f"{config.stage}.global_batch"
        raise UserError(name, config.train.global_batch, f"at most the {trained.samples} training images")
    if config.labelled:
        require_sizes(config, trained if config.data.held_out else index_of(shards, "test"))
        if len(trained.classes) < 2:
            why = f"the stage {config.stage} uses labels"
            raise UserError("data.shards", shards, "at least two classes", why)


def require_sizes(config: RunConfig, judged: Index) -> None:
    """Images that are evaluated as they are stored must be of the size that the run sees: known before it trains."""
    size = config.train.image_size
    if config.train.eval_resize == "none" and judged.image_size != size:
        width, height = (
            " to ".join(map(str, sorted(set(sides)))) for sides in (judged.images.width, judged.images.height)
        )
        valid = f"square or aspect, or shards whose images are {size} x {size}"
        why = f"those of the split {judged.split} are {width} px wide, {height} px high"
        raise UserError(f"{config.stage}.eval_resize", "none", valid, why)
