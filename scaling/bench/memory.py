"""Peak memory of a piece of work, as the device's allocator saw it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes of tensors that `run` held at one moment beyond those held when it began.

    On a GPU by the caching allocator's counter, without the allocator's own reserve; on a CPU by the profiler's record
    of every allocation, in which NumPy and the libraries' own buffers do not appear.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    assert profiled.profiler is not None
    return _peak(_allocations(profiled.profiler.kineto_results.experimental_event_tree()))


def _allocations(events: Iterable[Any]) -> Iterator[tuple[int, int]]:
    """Address and bytes of every allocation in the order of time; a free has negative bytes."""
    found, left = [], list(events)
    while left:
        event = left.pop()
        left += event.children
        if event.tag == _EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    for _, address, size in sorted(found, key=lambda entry: entry[0]):
        yield address, size


def _peak(allocations: Iterable[tuple[int, int]]) -> int:
    """Most bytes held at one moment.

    The profiler does not follow gloo's threads, one of which is by chance the last to hold what was sent. So a block
    was freed, too, when another is laid over it; until then its bytes still count.
    """
    total = peak = 0
    sizes: dict[int, int] = {}
    starts: list[int] = []  # of the blocks in `sizes`, which do not overlap, sorted
    for address, size in allocations:
        if size < 0:
            total += size
            if sizes.pop(address, None):
                starts.remove(address)
            continue
        first, last = bisect_right(starts, address), bisect_left(starts, address + size)
        if first and starts[first - 1] + sizes[starts[first - 1]] > address:
            first -= 1
        total += size - sum(sizes.pop(start) for start in starts[first:last])
        starts[first:last] = [address]
        sizes[address] = size
        peak = max(peak, total)
    return peak
