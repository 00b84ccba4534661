"""A process group beside the engine's: small votes and timings of the hosts that no step waits for."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class SideGroup:
    """gloo between the hosts, whatever the engine uses; a collective that is asked for now is answered later.

    All ranks ask in the same order.
    """

    def __init__(self) -> None:
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() and dist.get_world_size() > 1 else None
        self._vote: tuple[dist.Work, Tensor] | None = None

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether it is set on any rank; waits for all ranks."""
        if self.group is None:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.group)
        return [bool(vote) for vote in votes.tolist()]

    def agree(self, wish: bool) -> bool:
        """Whether any rank had the wish at the call before this one; alone, at this one."""
        if self.group is None:
            return wish
        answer = self.settle()
        wishes = torch.tensor([wish], dtype=torch.uint8)
        self._vote = (dist.all_reduce(wishes, op=dist.ReduceOp.MAX, group=self.group, async_op=True), wishes)
        return answer

    def settle(self) -> bool:
        """Waits for the vote under way and returns its answer."""
        if self._vote is None:
            return False
        (work, wishes), self._vote = self._vote, None
        work.wait()
        return bool(wishes.item())

    def gather(self, values: Tensor) -> Gathered:
        """Starts collecting `values` (n,), a CPU tensor, from every rank."""
        if self.group is None:
            return Gathered(None, [values])
        rows = [torch.empty_like(values) for _ in range(dist.get_world_size(self.group))]
        return Gathered(dist.all_gather(rows, values, group=self.group, async_op=True), rows)


class Gathered:
    """Values of all ranks that are on their way."""

    def __init__(self, work: dist.Work | None, rows: list[Tensor]) -> None:
        self.work = work
        self.rows = rows

    def result(self) -> Tensor:
        """(ranks, n) values; waits where they have not arrived."""
        if self.work is not None:
            self.work.wait()
        return torch.stack(self.rows)
