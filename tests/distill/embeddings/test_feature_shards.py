"""Features are written in shards: a killed computation continues with those that are there."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.files.row_shards import SHARD_ROWS, CachedRows
from distill.data.files.tensor_file import read_tensor
from distill.data.splits import Split, scan_split
from distill.embeddings.image_features import image_feature_rows, image_features, view_feature_rows
from distill.errors import DataError
from distill.models.teacher import Teacher, load_teacher

IMAGES = 2 * SHARD_ROWS + 500
KILL_AT = 2 * SHARD_ROWS + 100
ENCODE = """
import sys
from pathlib import Path
from distill.data.splits import scan_split
from distill.embeddings.image_features import image_features, view_feature_rows
from distill.models.teacher import load_teacher
data, teacher, cache, kind = sys.argv[1:]
split = scan_split(data, "unseen")
show = lambda done, total: print(done, flush=True)
encode = {
    "clean": lambda teacher: image_features(teacher, split, cache=Path(cache), progress=show),
    "views": lambda teacher: view_feature_rows(
        teacher, split, 1, cache=Path(cache), progress=show
    )[1].read(),
}
encode[kind](load_teacher(teacher))
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Small noisy images of one class."""
    root = tmp_path_factory.mktemp("photos")
    folder = root / "val" / "n1"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, pixels in enumerate(rng.integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{number:05}.bmp")
    return root


@pytest.fixture(scope="module")
def split(photos) -> Split:
    return scan_split(photos, "unseen")


@pytest.fixture
def teacher(tiny_teacher) -> Teacher:
    return load_teacher(tiny_teacher)


def count_encoded(teacher: Teacher) -> list[int]:
    """The number of images of each batch that the image tower gets from now on."""
    counts: list[int] = []
    teacher.model.visual.register_forward_hook(lambda _, args, __: counts.append(len(args[0])))
    return counts


def kill_while_encoding(photos: Path, teacher: str, cache: Path, kind: str) -> None:
    """Encode in a separate process, which is killed with SIGKILL after KILL_AT images."""
    command = [sys.executable, "-c", ENCODE, str(photos), teacher, str(cache), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) >= KILL_AT:
                process.kill()
                break
        assert process.wait(timeout=60) == -signal.SIGKILL


def test_a_killed_computation_encodes_no_finished_shard_again(
    photos, split, teacher, tiny_teacher, tmp_path
):
    kill_while_encoding(photos, tiny_teacher, tmp_path, "clean")
    assert not list(tmp_path.glob("*.safetensors"))
    again, shown = count_encoded(teacher), []
    features = image_features(
        teacher, split, cache=tmp_path, progress=lambda done, total: shown.append((done, total))
    )
    assert sum(again) == IMAGES - 2 * SHARD_ROWS
    assert shown[0][0] > 2 * SHARD_ROWS and shown[-1] == (IMAGES, IMAGES)
    torch.testing.assert_close(features, image_features(teacher, split, cache=None))
    (file,) = tmp_path.iterdir()  # one file, no shards
    assert read_tensor(file)[0].shape == (IMAGES, 32)


def test_a_killed_computation_of_views_continues_too(
    photos, split, teacher, tiny_teacher, tmp_path
):
    kill_while_encoding(photos, tiny_teacher, tmp_path / "killed", "views")
    again = count_encoded(teacher)
    params, rows = view_feature_rows(teacher, split, 1, cache=tmp_path / "killed")
    features = rows.read()
    assert sum(again) == IMAGES - 2 * SHARD_ROWS
    whole_params, whole_rows = view_feature_rows(teacher, split, 1, cache=tmp_path / "whole")
    whole = whole_rows.read()
    assert params.equal(whole_params)
    torch.testing.assert_close(features, whole)


def test_only_missing_and_damaged_shards_are_computed(tmp_path):
    path, rows = tmp_path / "rows.safetensors", 4 * SHARD_ROWS + 3
    values = torch.arange(2.0 * rows).view(rows, 2)
    asked = []

    def compute(parts):
        asked.append(list(parts))
        for part in parts:
            if part.stop == rows and len(asked) == 1:
                raise DataError("an image cannot be read")
            yield from values[part.start : part.stop].split(100)

    with pytest.raises(DataError, match="an image cannot be read"):
        CachedRows(path, "feature", values.shape, compute).read()
    (folder,) = tmp_path.iterdir()
    shards = sorted(folder.iterdir())
    assert len(shards) == 4
    content = bytearray(shards[1].read_bytes())
    content[-1] ^= 1
    shards[1].write_bytes(content)
    assert CachedRows(path, "feature", values.shape, compute).read().equal(values)
    assert asked[1] == [range(SHARD_ROWS, 2 * SHARD_ROWS), range(4 * SHARD_ROWS, rows)]
    assert list(tmp_path.iterdir()) == [path]
    assert CachedRows(path, "feature", values.shape, compute).read().equal(values)
    assert len(asked) == 2


def test_shards_that_other_processes_wrote_are_joined(split, teacher, tmp_path):
    files = [image_feature_rows(teacher, split, cache=tmp_path) for _ in range(2)]
    missing = files[0].missing()
    assert missing == [
        range(SHARD_ROWS), range(SHARD_ROWS, 2 * SHARD_ROWS), range(2 * SHARD_ROWS, IMAGES)
    ]  # fmt: skip
    files[0].write_shard(missing[2])
    assert files[1].missing() == missing[:2]
    for rows in reversed(missing):
        files[1].write_shard(rows)
    encoded = count_encoded(teacher)
    files[1].write_shard(missing[0])  # it is there
    features = image_features(teacher, split, cache=tmp_path, normalize=False)
    assert files[1].missing() == [] and encoded == []
    assert features.equal(image_features(teacher, split, cache=None, normalize=False))


def test_a_full_disk_is_named_and_the_finished_shards_stay(small_disk):
    path, rows = small_disk / "rows.safetensors", 4 * SHARD_ROWS

    def compute(parts):
        for part in parts:
            yield torch.zeros(len(part), 100)  # of a disk that two shards fit on

    with pytest.raises(DataError, match=r"cannot write the feature cache .*No space left.*free so"):
        CachedRows(path, "feature", (rows, 100), compute).read()
    (folder,) = small_disk.iterdir()
    assert [file.name for file in sorted(folder.iterdir())] == [
        "000000000.safetensors", "000001024.safetensors"
    ]  # fmt: skip
