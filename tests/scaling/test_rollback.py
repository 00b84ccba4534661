"""The bundle of a rollback names the very samples that the stream gave."""

import dataclasses
from itertools import islice
from pathlib import Path

import pytest

from data.holdout import Part
from data.index import read_index, split_folder
from data.store import Store
from scaling.attempt import Attempt
from scaling.config import DataConfig
from scaling.environment import Rank
from scaling.rollback import describe
from scaling.start import build
from scaling.steps import Step
from scaling.stop import StopRequest
from tests.scaling.runs import BATCH, small_config, write_run


@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_samples_are_those_of_the_stream(tmp_path: Path, shards: Path, held_out: float) -> None:
    """Over more than an epoch; labels, which the stream reads from the shards, say the same."""
    config = small_config(shards, data=DataConfig(shards=str(shards), lanes=4, held_out=held_out))
    config = dataclasses.replace(config, seed=3)
    folder = write_run(config, tmp_path)
    train = split_folder(str(shards), "train")
    run = build(config, Attempt.claim(folder), Rank(), read_index(train), None, StopRequest(0.0))
    batches = list(islice(run.open_training_stream(), 14))
    run.watchdog.close()
    run.saver.close()
    ends = range(BATCH, BATCH * len(batches) + 1, BATCH)
    bundle = describe(run, [Step(end // BATCH, end, end, 0, 0.0, 0.0, 0.0) for end in ends])["steps"]
    store = Store(train)
    labels = store.samples["label"]
    assert bundle[-1]["epochs"][-1] == 1
    for described, batch in zip(bundle, batches, strict=True):
        assert described["samples"] == batch.samples.tolist()
        assert labels[described["samples"]].tolist() == batch.labels.tolist()
        assert described["keys"] == [store.name(sample) for sample in batch.samples.tolist()]
    if held_out:
        given = {sample for described in bundle for sample in described["samples"]}
        assert not given & set(Part(held_out, held_out=True).samples(labels).tolist())
