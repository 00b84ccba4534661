"""Memory of a run by rank before it starts: what stays from step to step, and what a forward and backward need beside.

Gradients and activations trade places in a backward pass: it begins with all activations and ends with all gradients,
so the peak holds the larger of the two or what stands between them once the decoder is done, and both where gradients
outlive a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from models.activations import TRITON_INTERVAL, Kept, activations
from models.parameters import Parameters, parameters
from scaling.config import ZERO_BUCKET, RunConfig
from scaling.devices import usable_memory
from scaling.share import share_of

FP32 = 4
GATHERED_BLOCKS = 3


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank. `host` is what offload keeps in the CPU's memory instead."""

    weights: int
    gradients: int
    moments: int
    average: int
    activations: int  # kept by the forward of one micro-batch
    working: int  # temporaries of the backward, gathered weights and buffers of communication
    late_activations: int  # of `activations`: the encoder's blocks, which are differentiated last
    early_gradients: int  # of `gradients`: what is differentiated before them
    keeps_gradients: bool  # beside the activations: accumulation, or buffers that persist
    host: int = 0

    @property
    def peak(self) -> int:
        """Of the device, over a step."""
        moving = max(self.activations, self.late_activations + self.early_gradients, self.gradients)
        if self.keeps_gradients:
            moving = self.activations + self.gradients
        return self.weights + self.moments + self.average + moving + self.working

    def fits(self, device: str) -> bool:
        """Whether the peak is within what can be used of a device of this name; UserError for an unknown one."""
        return self.peak <= usable_memory(device)


def memory(config: RunConfig, ranks: int, classes: int, *, on_gpu: bool = True) -> Memory:
    """The estimate for one of `ranks` ranks; on a CPU the scan keeps other states than on a GPU.

    Raises UserError where a step cannot be shared among the ranks, as the run itself would.
    """
    encoder, objective = config.encoder_config(), config.objective_config(classes)
    micro, accumulation = share_of(config, ranks)
    counts = parameters(encoder, objective)
    kept = activations(
        encoder, objective, bf16=config.precision == "bf16", interval=TRITON_INTERVAL if on_gpu else None
    )
    encoded, decoded = kept.block, kept.decoder_block
    working = max(encoded.working, decoded.working) * micro
    if config.checkpointing:  # blocks keep their input; the one that is differentiated is whole again
        working += max(encoded.image * micro + encoded.copies, decoded.image * micro + decoded.copies)
        encoded, decoded = Kept(encoded.stream), Kept(decoded.stream)
    late = encoder.depth * (encoded.image * micro + encoded.copies)
    early = kept.decoder_blocks * (decoded.image * micro + decoded.copies) + kept.rest.image * micro + kept.rest.copies
    plain = Memory(
        weights=FP32 * counts.trained,
        gradients=FP32 * counts.trained,
        moments=2 * FP32 * counts.trained,
        average=FP32 * counts.trained if config.train.ema else 0,
        activations=early + late,
        working=working,
        late_activations=late,
        early_gradients=FP32 * (counts.trained - counts.encoder_blocks),
        keeps_gradients=accumulation > 1,
    )
    return SPREADS[config.engine](plain, config, ranks, counts)


def _single(plain: Memory, config: RunConfig, ranks: int, counts: Parameters) -> Memory:
    return plain


def _ddp(plain: Memory, config: RunConfig, ranks: int, counts: Parameters) -> Memory:
    """The buckets that carry gradients between ranks are the gradients, and stay."""
    return replace(plain, keeps_gradients=True)


def _fsdp(plain: Memory, config: RunConfig, ranks: int, counts: Parameters) -> Memory:
    """A shard of all state. What is outside the blocks stays gathered, and so do its gradients until backward ends; of
    the blocks the one at work, the next, the buffer that the next arrives in; and a block's gradients on their way to
    their shards, with the buffer that they leave in."""
    options = config.fsdp
    shards = ranks // options.replicas
    blocks = (
        GATHERED_BLOCKS * counts.largest_block if options.reshard_after_forward else counts.trained - counts.outside
    )
    shard = replace(
        plain,
        weights=plain.weights // shards,
        gradients=plain.gradients // shards,
        moments=plain.moments // shards,
        average=plain.average // shards,
        early_gradients=plain.early_gradients // shards,
        working=plain.working + FP32 * (2 * counts.outside + blocks + 2 * counts.largest_block),
    )
    if not options.offload:
        return shard
    host = shard.weights + shard.gradients + shard.moments + shard.average
    return replace(shard, weights=0, gradients=0, moments=0, average=0, early_gradients=0, host=host)


def _deepspeed(plain: Memory, config: RunConfig, ranks: int, counts: Parameters) -> Memory:
    """ZeRO: flat fp32 masters, moments and average by share beside the weights that modules compute with, whole up to
    stage 2; gradients whole at stage 1 alone; a bucket that gradients are collected in and, from stage 2 on, a second
    that is on its way (on GPUs; stage 3 has its like on CPUs too)."""
    options = config.deepspeed
    share, sharded = plain.weights // ranks, options.stage == 3
    gathered = FP32 * (counts.outside + GATHERED_BLOCKS * counts.largest_block + counts.largest_block) if sharded else 0
    spread = replace(
        plain,
        weights=(share if sharded else plain.weights) + share,
        gradients=plain.gradients if options.stage == 1 else plain.gradients // ranks,
        moments=plain.moments // ranks,
        average=plain.average // ranks,
        early_gradients=plain.early_gradients if options.stage == 1 else plain.early_gradients // ranks,
        keeps_gradients=plain.keeps_gradients or sharded,
        working=plain.working + gathered + (1 if options.stage == 1 else 2) * FP32 * ZERO_BUCKET,
    )
    if not options.offload:
        return spread
    host = share + spread.moments + spread.average + share  # masters and their gradients
    if not sharded:
        host += share  # updated masters on their way back to the weights
    return replace(spread, weights=spread.weights - share, moments=0, average=0, host=host)


SPREADS: dict[str, Callable[[Memory, RunConfig, int, Parameters], Memory]] = {
    "single": _single,
    "ddp": _ddp,
    "fsdp": _fsdp,
    "deepspeed": _deepspeed,
}
