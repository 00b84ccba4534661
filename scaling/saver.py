"""When the state of a run is saved, and on which thread: training goes on while a checkpoint is written."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from scaling import checkpoint
from scaling.attempt import Attempt
from scaling.checkpoint import Counters, root_cause
from scaling.config import TrainConfig
from scaling.errors import UserError
from scaling.files import UNWRITABLE

COPIED_AT_ONCE = StagingOptions(False, False, False, False)
"""Into the CPU's memory before a save returns, without further threads and memory; as torch does by itself."""


class Writer(dcp.FileSystemWriter):
    """Torch's own, but a disk's error over which torch.save laid one of its own is told as it is.

    Here, as what lies below an error does not travel to other ranks.
    """

    def write_data(self, *arguments: Any) -> Any:
        """Writes the tensors of this rank."""
        try:
            return super().write_data(*arguments)
        except RuntimeError as error:
            below: BaseException | None = error
            while below is not None and not isinstance(below, OSError):
                below = below.__context__
            raise below or error from None


class Saver:
    """Saves in the background one at a time, or at once where the run is about to leave. All ranks call it alike.

    The state is copied to the CPU before a background save returns. Errors of a background save come out at the next
    call.
    """

    def __init__(self, attempt: Attempt, config: TrainConfig) -> None:
        self.attempt = attempt
        self.config = config
        self.branches = frozenset(images // config.global_batch for images in config.branches)
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None  # collectives of the thread
        self.threads = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self.under_way: Future[None] | None = None
        self.newest = -1  # step of the last save that was started, or of the checkpoint that was read

    def due(self, step: int) -> bool:
        """Whether the config wants a checkpoint by now: of `step` itself, or of one before that could not be saved."""
        periods = (self.config.checkpoint_every, self.config.keep_every)
        passed = any(every and step // every > self.newest // every for every in periods)
        return passed or step in self.branches

    def start(self, state: dict[str, Any], counters: Counters) -> None:
        """Copies the state and writes it in the background; waits first for a save that is still under way."""
        self.wait()
        began = time.perf_counter()
        kept = replace(counters, losses=list(counters.losses))
        temporary = checkpoint.temporary_folder(self.attempt, counters.step)
        written = dcp.async_save(
            state,
            storage_writer=Writer(temporary),
            async_stager=DefaultStager(COPIED_AT_ONCE),  # else the writer would copy, each tensor by itself
            process_group=self.group,
            no_dist=self.group is None,
        )
        assert isinstance(written, Future)
        self.under_way = self.threads.submit(self._finish, written, temporary, kept, self.newest, began)
        self.newest = counters.step

    def commit(self, state: dict[str, Any], counters: Counters) -> None:
        """Saves, and returns when all ranks may take the checkpoint for committed."""
        if self.newest != counters.step:
            self.start(state, counters)
        self.wait()

    def wait(self) -> None:
        """Until nothing is under way; then the last checkpoint is on the disk for every rank."""
        if self.under_way is None:
            return
        under_way, self.under_way = self.under_way, None
        under_way.result()
        if self.group is not None:
            dist.barrier(self.group)

    def check(self) -> None:
        """Raises what made a background save fail."""
        if self.under_way is not None and self.under_way.done():
            self.under_way.result()

    def close(self) -> None:
        """Lets a background save that still writes end, whatever becomes of it."""
        self.threads.shutdown()

    def _finish(self, written: Future[Any], temporary: Path, counters: Counters, before: int, began: float) -> None:
        """The commit after the writing, by rank 0; `before` is the step of the checkpoint before this one."""
        try:
            written.result()
            crcs = self._checksums(temporary)
            if self.attempt.writes:
                checkpoint.commit(self.attempt, temporary, counters, crcs, time.perf_counter() - began)
                checkpoint.discard_unread(self.attempt, before, counters.step)
                config = self.config
                checkpoint.prune(self.attempt.folder, config.keep_checkpoints, config.keep_every, self.branches)
        except (OSError, RuntimeError, dcp.CheckpointException) as error:
            cause = root_cause(error)
            shutil.rmtree(temporary, ignore_errors=True)  # it may be what fills the disk
            self.attempt.check()  # where a newer one has cleared the files away, that is what to tell
            if isinstance(cause, OSError) and cause.errno in UNWRITABLE:
                raise UserError(
                    "checkpoints", str(temporary.parent), "a folder that can be written, with room", why=str(cause)
                ) from error
            raise

    def _checksums(self, temporary: Path) -> dict[str, int]:
        """{file of tensors: crc32}, of all ranks: each reads back what it has just written, mostly out of memory."""
        rank = dist.get_rank() if self.group is not None else 0
        own = {path.name: checkpoint.crc32_of(path) for path in checkpoint.written_by(rank, temporary)}
        everywhere = [own]
        if self.group is not None:
            everywhere = [own] * dist.get_world_size()
            dist.all_gather_object(everywhere, own, group=self.group)
        return {name: crc for crcs in everywhere for name, crc in crcs.items()}
