"""The teacher's features of a job, computed on all nodes of a Ray cluster before its training."""

from pathlib import Path

import numpy as np
import pytest

from distill.data.files.row_shards import SHARD_ROWS
from distill.data.files.tensor_file import read_tensor
from distill.data.splits import scan_splits
from distill.embeddings.image_features import image_features, view_feature_rows
from distill.models.teacher import load_teacher
from tests.distill.conftest import COLOURS, SPLITS
from tests.distill.on_ray.conftest import kill, on_ray
from tests.distill.plain_images import write_boxes, write_images
from tests.distill.worker.conftest import epochs, events, running_worker, state, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_installed")]

IMAGES = 5 * SHARD_ROWS + 100
VIEWS = 8


def write_photos(root: Path, count: int) -> Path:
    """`count` small noisy images of three colours to train on, and a few of each other split."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, names in SPLITS.items():
        for place, name in enumerate(names):
            folder = root / split / name
            folder.mkdir(parents=True)
            own = range(place, count if split == "train" else 48, len(names))
            noise = rng.integers(-30, 30, (len(own), 8, 8, 3))
            pixels = np.clip(noise + COLOURS[name], 0, 255).astype(np.uint8)
            for number, image in zip(own, pixels, strict=True):
                Image.fromarray(image).save(folder / f"{number:05}.bmp")
    return root


class WatchedShards:
    """The shards in a cache folder: those that are being written, and each that was finished."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self.finished: set[tuple[str, str, int]] = set()  # folder, file, inode
        self.partial = 0

    def look(self) -> None:
        files = list(self._cache.glob("*.shards/*"))
        self.partial = sum(file.suffix == ".partial" for file in files)
        for file in files:
            try:
                if file.suffix == ".safetensors":
                    self.finished.add((file.parent.name, file.name, file.stat().st_ino))
            except FileNotFoundError:
                return  # they have become one file


def test_features_are_computed_on_all_nodes_of_which_one_is_killed(
    service, address, work_dir, queue_job, cluster, colour_teacher, tmp_path
):
    photos = write_photos(tmp_path / "photos", IMAGES)
    third = cluster.add()
    job = queue_job(service, 1, data=str(photos), teacher_views=VIEWS)
    shards = WatchedShards(work_dir / "cache")

    def all_at_work() -> bool:
        shards.look()
        views = [file for file in shards.finished if file[0].startswith("views-")]
        return shards.partial == 3 and len(views) > 0

    def ended() -> bool:
        shards.look()
        return state(service, job) != "running"

    with running_worker(address, work_dir, "--once", *on_ray(cluster)):
        wait_for(all_at_work, 300)
        kill(third)
        wait_for(ended, 300)
    assert state(service, job) == "succeeded", service.get(f"/v1/jobs/{job}").json()["error"]
    assert epochs(service, job) == [1]

    # 6 shards of clean features and 6 of views, none of which was written twice. (The 13th is the
    # whole file of the unseen images.)
    assert len({file[:2] for file in shards.finished}) == 12
    assert len(shards.finished) == 12
    splits, teacher = scan_splits(photos), load_teacher(colour_teacher)
    image_features(teacher, splits["train"], cache=tmp_path / "alone")
    view_feature_rows(teacher, splits["train"], VIEWS, cache=tmp_path / "alone")[1].read()
    alone = list((tmp_path / "alone").glob("*.safetensors"))
    assert len(alone) == 2
    for file in alone:
        assert read_tensor(work_dir / "cache" / file.name)[0].equal(read_tensor(file)[0])

    said = str(events(service, job, "log"))
    assert "computing 13 shards of teacher features in 3 processes on Ray" in said
    for phase in ("Teacher features, train", "Teacher features, views"):
        steps = [each for each in events(service, job, "progress") if each["phase"] == phase]
        assert [each["steps"] for each in steps] == [IMAGES] * len(steps)
        assert [each["step"] for each in steps] == sorted(each["step"] for each in steps)
        assert steps[-1]["step"] == IMAGES


def test_unreadable_images_are_logged_at_once_and_all_named_before_the_rest_is_encoded(
    service, address, work_dir, queue_job, cluster, tmp_path
):
    photos = write_photos(tmp_path / "photos", 5 * SHARD_ROWS + 50)
    for name in ("blue/00002.bmp", "red/05112.bmp"):  # the first and the last of the shards
        path = photos / "train" / name
        assert path.is_file()
        path.write_bytes(b"no image")
    job = queue_job(service, 1, data=str(photos), pixels="streamed")
    with running_worker(address, work_dir, "--once", *on_ray(cluster)) as process:
        process.communicate(timeout=600)
    found = service.get(f"/v1/jobs/{job}").json()
    assert found["state"] == "failed"
    assert "cannot read 2 images: " in found["error"] and "\n" not in found["error"]
    assert "blue/00002.bmp" in found["error"] and "red/05112.bmp" in found["error"]
    messages = [each["message"] for each in events(service, job, "log")]
    (early,) = [message for message in messages if message.startswith("cannot read the image ")]
    assert early.endswith("; checking the other images")
    assert len(list((work_dir / "cache").glob("features-train-*/*.safetensors"))) < 4


def test_a_cancel_while_boxes_are_unpacked_keeps_the_crops(
    service, address, work_dir, queue_job, cluster, tmp_path
):
    photos = tmp_path / "photos"
    write_images(photos, 600, 1500)
    write_boxes(photos / "train", photos / "boxes.json", 1500)
    job = queue_job(service, 1, data=str(photos / "boxes.json"))
    with running_worker(address, work_dir, *on_ray(cluster)):
        wait_for(lambda: events(service, job, "progress"), 300)
        service.post(f"/v1/jobs/{job}/cancel")
        wait_for(lambda: state(service, job) == "cancelled", 60)
        wait_for(lambda: not cluster.running(), 60)
    phases = {each["phase"] for each in events(service, job, "progress")}
    assert phases == {"Unpacking images"}
    (index,) = (work_dir / "cache" / "sources").glob("*.interrupted/index.jsonl")
    assert index.read_text()
