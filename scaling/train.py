"""The loop: one for all strategies and stages, on any engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scaling.evaluate import evaluate, having_turn
from scaling.randomness import step_noise
from scaling.rollback import roll_back
from scaling.schedule import learning_rate
from scaling.stop import ANOTHER_RANK, Stopped
from scaling.unreadable import Unreadable

if TYPE_CHECKING:
    from scaling.run import Run


def train(run: Run) -> None:
    """Trains `run` from where its counters stand to its last step, and commits that step.

    The schedule is a function of the batch's place among the run's steps: a masked batch uses up its learning rate, and
    AdamW's own count, which corrects its bias, takes updates alone. Losses and norms are looked at one step late.

    Raises Stopped, with the state committed, when any rank was asked to stop, and UserError when more samples than
    allowed turn out unreadable.
    """
    engine, counters, config, saver = run.engine, run.counters, run.config.train, run.saver
    batches = run.open_training_stream()
    unreadable = Unreadable(run.config.data.shards, run.index.samples)
    run.clock.restart()
    while counters.step < run.steps:
        loss = torch.zeros((), device=engine.device)
        for micro in range(run.accumulation):
            batch = run.clock.fetch(batches)
            unreadable.met.update(batch.skipped)
            images, labels = run.inputs(batch)
            noise = step_noise(run.config.seed, run.config.stage, batch.positions, tokens=run.masked, depth=run.dropped)
            with run.ranktimes.own_work():
                part, _ = engine.forward(images, labels, noise.to(engine.device), last=micro == run.accumulation - 1)
            part = part / run.accumulation
            engine.backward(part)
            loss += part.detach()
        loss = engine.sum(loss) / engine.rank.ranks
        lr = learning_rate(config, counters.step, run.steps)
        norm = engine.step(lr, loss)

        counters.advance(batch.images_seen)
        run.stop.arm()
        run.watchdog.beat()
        run.trace.step()
        finished = counters.step == run.steps
        if counters.step % config.log_every == 0 or finished:
            unreadable.check(run.side)
        stopping = run.side.agree(run.stop.requested())
        evaluating = not finished and bool(having_turn(run.config, counters.step, finished=False))
        saving = finished or stopping or evaluating or saver.due(counters.step)
        step = run.clock.lap(counters, batch, lr)
        run.ranktimes.add(step)
        for done in run.readback.push(step, loss, norm, engine.skipped, wait=saving):
            run.health.judge(done)
            run.log.add(done)
        if run.health.ill:
            roll_back(run)
            batches = run.open_training_stream()
            run.clock.restart()
            continue
        counters.gpu_seconds += step.seconds * engine.rank.ranks

        saver.check()
        if finished or stopping:
            saver.commit(engine.state(), counters)
        elif saving and not run.health.suspicious:
            saver.start(engine.state(), counters)
            run.clock.restart()
        if stopping and not finished:
            raise Stopped(f"{run.stop.reason or ANOTHER_RANK} at step {counters.step}")
        if evaluating:  # a stop in its midst commits this very state
            evaluate(run, finished=False)
            run.clock.restart()
    run.side.settle()
