"""A tensor of which this rank holds a run of elements, as torch.distributed.checkpoint writes, stages and reads it.

ZeRO cuts flattened parameters anywhere, a checkpoint stores boxes of a tensor's own shape; so a run of elements is
written as the few boxes that it consists of, and read back from whatever boxes another engine wrote.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

Place = tuple[int, ...]
aten = torch.ops.aten


def boxes(shape: Place, begin: int, end: int) -> Iterator[tuple[Place, Place]]:
    """(offsets, sizes) of the boxes that hold the elements [begin, end) of a tensor of `shape`, in their order."""
    if begin >= end:
        return
    if len(shape) <= 1:
        yield ((begin,), (end - begin,)) if shape else ((), ())
        return
    inner = math.prod(shape[1:])
    row, within = divmod(begin, inner)
    if within or end - begin < inner:  # a part of one row
        stop = min(end - row * inner, inner)
        yield from (((row, *offsets), (1, *sizes)) for offsets, sizes in boxes(shape[1:], within, stop))
        yield from boxes(shape, row * inner + stop, end)
        return
    rows = (end - begin) // inner
    yield (row, *(0 for _ in shape[1:])), (rows, *shape[1:])
    yield from boxes(shape, begin + rows * inner, end)


class Fragment(Tensor):
    """The elements from `offset` on of a flattened tensor of `shape`; `elements` (count,) is the live memory of them.

    It has the whole tensor's shape, as a DTensor has, and is stored and copied but not computed with.
    """

    elements: Tensor
    parts: dict[Place, Tensor]
    offset: int

    @staticmethod
    def __new__(cls, shape: Place, offset: int, elements: Tensor) -> Fragment:
        assert offset + elements.numel() <= math.prod(shape)
        self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=elements.dtype, device=elements.device)
        self.offset, self.elements, self.parts = offset, elements, {}
        position = 0
        for offsets, sizes in boxes(tuple(shape), offset, offset + elements.numel()):
            count = math.prod(sizes)
            self.parts[offsets] = elements.narrow(0, position, count).view(sizes)
            position += count
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Fragment({tuple(self.shape)}, from {self.offset}: {self.elements})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, op: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        """Copies and their like are made element by element; nothing else is meant to happen to a fragment."""
        first, *rest = arguments
        options = options or {}
        if op is aten.new_empty.default:  # a checkpoint that is staged asks for it and then sets the attributes
            return Fragment(rest[0], 0, torch.empty(0, dtype=first.dtype, device=options.get("device", first.device)))
        if op not in (aten.detach.default, aten.clone.default, aten._to_copy.default, aten.copy_.default):
            raise NotImplementedError(f"{op} of a fragment")
        rest = [other.elements if isinstance(other, Fragment) else other for other in rest]
        elements = op(first.elements, *rest, **options)
        return first if op is aten.copy_.default else Fragment(first.shape, first.offset, elements)

    # What torch.distributed.checkpoint asks of what is spread over ranks.

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(place), part.shape) for place, part in self.parts.items()]

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.elements)
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.shape),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self.parts[tuple(index.offset)]
