"""The stream of shards with real workers and real processes: every sample once, or as often as it says."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import fields
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from artgpt4.data.records import Report
from artgpt4.data.stream import Resize, ShardStream, _row, _share, merge_reports, stretch
from artgpt4.profile import InputError

COUNTS = [1, 17, 0, 9, 23]  # samples of the shards; of shard 4, sample 7 is broken and sample 9 flagged


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), (shade * 9, 90, 120)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pattern(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    for shard, count in enumerate(COUNTS):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for i in range(count):
                members = {"jpg": picture(i), "txt": b"a text", "json": b"{}"}
                if (shard, i) == (4, 7):
                    members["jpg"] = picture(i)[:500]
                if (shard, i) == (4, 9):
                    members["json"] = b'{"punsafe": 0.9}'
                for suffix, data in members.items():
                    info = tarfile.TarInfo(f"{i:03}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    with tarfile.open(folder / "00003.tar") as tar:
        last = tar.getmembers()[-1].offset_data
    with open(folder / "00003.tar", "r+b") as file:  # cut off after the last sample
        file.truncate(last + 512)
    return f"{folder}/*.tar"


def loaded(stream, workers, epoch=0, **settings) -> list[str]:
    stream.set_epoch(epoch)
    loader = DataLoader(stream, batch_size=4, num_workers=workers, **settings)
    return [key for batch in loader for key in batch["key"]]


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 3), (2, 2), (3, 1), (7, 40), (60, 2)])
@pytest.mark.parametrize("even", [False, True])
def test_every_sample_whatever_the_number_of_readers(pattern, world, workers, even):
    for epoch in (0, 1):
        seen, shares = Counter(), []
        for rank in range(world):
            stream = ShardStream(pattern, rank=rank, world=world, even=even)
            stream.set_epoch(epoch)
            parts = [[s.name for s in _row(stream, _share(stream, w, workers))] for w in range(workers)]
            shares.append([len(p) for p in parts])
            seen.update(sum(parts, []))
        assert len(seen) == sum(COUNTS)
        if even:
            assert shares == [shares[0]] * world
            assert sum(seen.values()) - len(seen) < world
        else:
            assert set(seen.values()) == {1}
            assert max(map(sum, shares)) - min(map(sum, shares)) <= 1


def test_stretches_cover_everything():
    for total in range(40):
        for pieces in range(1, 12):
            parts = [list(stretch(total, i, pieces)) for i in range(pieces)]
            assert sum(parts, []) == list(range(total))
            parts = [list(stretch(total, i, pieces, even=True)) for i in range(pieces)]
            assert sorted({p for part in parts for p in part}) == list(range(total))
            assert {len(p) for p in parts} == {-(-total // pieces)}


def test_workers_share_an_epoch_and_their_reports(pattern):
    stream, alone = ShardStream(pattern, Resize(8)), ShardStream(pattern, Resize(8))
    keys = loaded(stream, 2)
    assert len(keys) == len(set(keys)) == sum(COUNTS) - 2
    assert sorted(keys) == sorted(loaded(alone, 0))
    for report in (stream.report, alone.report):
        assert report.kept == 48
        assert dict(report.dropped) == {
            "unreadable image": 1, "flagged unsafe (punsafe over 0.5)": 1, "shard without its end: download it again": 1}
        assert "00004.tar/007" in str(report)
    assert stream.repeated == 0


def test_the_order_is_settled_by_seed_epoch_and_readers(pattern):
    stream = ShardStream(pattern, Resize(8), shuffle=6)
    first = loaded(stream, 2, epoch=3)
    assert loaded(stream, 2, epoch=3) == first
    assert loaded(ShardStream(pattern, Resize(8), shuffle=6), 2, epoch=3) == first
    assert loaded(stream, 2, epoch=4) != first
    assert loaded(ShardStream(pattern, Resize(8), shuffle=6, seed=1), 2, epoch=3) != first


def test_workers_that_persist_see_the_epoch_change(pattern):
    stream = ShardStream(pattern, Resize(8))
    loader = DataLoader(stream, batch_size=4, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        epochs.append([key for batch in loader for key in batch["key"]])
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert stream.report.kept == 48


def test_a_walk_given_up_leaves_a_report_of_what_was_read(pattern):
    stream = ShardStream(pattern, Resize(8))
    walk = iter(stream)
    list(islice(walk, 5))
    walk.close()
    assert 5 <= stream.report.kept <= 7


def test_a_new_number_of_workers_does_not_mix_with_the_old_reports(pattern):
    stream = ShardStream(pattern, Resize(8))
    for workers in (2, 0, 1):
        loaded(stream, workers)
        assert stream.report.kept == 48


def test_with_replacement_there_is_no_end(pattern):
    stream = ShardStream(pattern, resampled=True)
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    keys = [record.key for record in islice(loader, 500)]
    assert len(set(keys)) == 49
    again = DataLoader(ShardStream(pattern, resampled=True), batch_size=None, num_workers=2)
    assert [record.key for record in islice(again, 500)] == keys


PROCESS = """
import json, sys
from torch.utils.data import DataLoader
from artgpt4.data.stream import Resize, ShardStream

if __name__ == "__main__":
    stream = ShardStream(sys.argv[1], Resize(8), even=sys.argv[2] == "even")
    loader = DataLoader(stream, batch_size=4, num_workers=2)
    batches = [batch["key"] for batch in loader]
    print(json.dumps(dict(batches=batches, steps=stream.steps(4, 2), repeated=stream.repeated, report=vars(stream.report),
                          folder=stream.folder)))
"""


@pytest.mark.parametrize("even", ["exact", "even"])
def test_two_processes(pattern, tmp_path, even):
    program = tmp_path / "process.py"
    program.write_text(PROCESS)
    running = [
        subprocess.Popen([sys.executable, program, pattern, even], stdout=subprocess.PIPE, text=True,
                         env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "PYTHONPATH": os.pathsep.join(sys.path)})
        for rank in range(2)
    ]
    told = [json.loads(process.communicate(timeout=120)[0]) for process in running]
    keys = [[key for batch in process["batches"] for key in batch] for process in told]
    report = merge_reports(Report(**process["report"]) for process in told)
    assert len({*keys[0], *keys[1]}) == 48
    assert report.dropped["shard without its end: download it again"] == 1
    if even == "exact":
        assert not set(keys[0]) & set(keys[1])
        assert report.kept == 48
    else:
        assert len(keys[0]) == len(keys[1]) == 25
        assert len(told[0]["batches"]) == len(told[1]["batches"]) == told[0]["steps"] == told[1]["steps"]
        assert sum(process["repeated"] for process in told) == len(keys[0]) + len(keys[1]) - 48
    assert not any(Path(process["folder"]).exists() for process in told)


def test_the_stream_travels_to_spawned_workers(pattern):
    stream = ShardStream(pattern, Resize(8))
    there = ForkingPickler.loads(ForkingPickler.dumps(stream))
    stream.set_epoch(5)
    assert there.epoch == 5
    assert len(list(there)) == stream.report.kept == 48


def test_reports_add_up_in_every_field():
    one, two = Report(), Report()
    one.kept = two.kept = 2
    one.drop("r", "a"), two.drop("r", "b"), two.drop("s", "c")
    both = merge_reports([one, two])
    assert (both.kept, both.dropped, both.examples) == (4, {"r": 2, "s": 1}, {"r": ["a", "b"], "s": ["c"]})
    assert {f.name for f in fields(Report)} >= {"kept", "dropped", "examples"}


def test_even_needs_something_to_repeat(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        info = tarfile.TarInfo("1.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"bad"))
    with pytest.raises(InputError, match="nothing to make up for 1 lost samples"):
        list(ShardStream(tmp_path / "0.tar", even=True))
    assert list(ShardStream(tmp_path / "0.tar")) == []
