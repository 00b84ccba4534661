"""Runs of elements as boxes, and through torch.distributed.checkpoint to tensors cut elsewhere."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as some

from scaling.dtensor import local
from scaling.fragment import Fragment, boxes


@given(some.lists(some.integers(1, 5), max_size=4), some.data())
def test_boxes_hold_the_elements_in_their_order(shape: list[int], data: some.DataObject) -> None:
    total = math.prod(shape)
    begin = data.draw(some.integers(0, total))
    end = data.draw(some.integers(begin, total))
    numbers = torch.arange(total).view(shape)
    found = []
    for offsets, sizes in boxes(tuple(shape), begin, end):
        place = tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))
        found.append(numbers[place].flatten())
    assert torch.equal(torch.cat(found) if found else torch.arange(0), torch.arange(begin, end))
    assert len(found) <= max(1, 2 * len(shape) - 1)


@pytest.mark.parametrize(("begin", "end"), [(0, 60), (7, 53), (13, 14), (20, 40), (60, 60)])
def test_read_from_a_whole_tensor_in_place(tmp_path: Path, begin: int, end: int) -> None:
    dcp.save({"weight": torch.arange(60.0).view(3, 4, 5)}, checkpoint_id=tmp_path, no_dist=True)
    memory = torch.full((100,), -1.0)
    state = {"weight": Fragment((3, 4, 5), begin, memory.narrow(0, 10, end - begin))}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    assert torch.equal(memory[10 : 10 + end - begin], torch.arange(float(begin), float(end)))
    assert (memory[:10] == -1).all()
    assert (memory[10 + end - begin :] == -1).all()


def test_written_as_a_whole_tensor_at_once_and_in_the_background(tmp_path: Path) -> None:
    """A background save takes the values as they were when it was called."""
    memory = torch.arange(60.0)
    state = {"weight": Fragment((3, 4, 5), 0, memory), "step": torch.tensor(3.0)}
    dcp.save(state, checkpoint_id=tmp_path / "now", no_dist=True)
    later = dcp.async_save(state, checkpoint_id=tmp_path / "later", no_dist=True)
    memory.zero_()
    later.result()  # type: ignore[union-attr]
    for name in ("now", "later"):
        read = {"weight": torch.zeros(3, 4, 5), "step": torch.tensor(0.0)}
        dcp.load(read, checkpoint_id=tmp_path / name, no_dist=True)
        assert torch.equal(read["weight"], torch.arange(60.0).view(3, 4, 5))
        assert read["step"] == 3


def test_copies_have_memory_of_their_own() -> None:
    memory = torch.arange(10.0)
    fragment = Fragment((4, 5), 6, memory)
    copy = fragment.clone()
    memory.zero_()
    assert fragment.shape == copy.shape == (4, 5)
    assert torch.equal(local(copy), torch.arange(10.0))
    assert not local(fragment).any()
    fragment.copy_(copy)
    assert torch.equal(memory, torch.arange(10.0))
    with pytest.raises(NotImplementedError):
        fragment + 1
