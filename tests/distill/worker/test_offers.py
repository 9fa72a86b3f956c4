"""What a worker finds on its machine, and tells the service."""

import json
import os
import shutil
from importlib.util import find_spec

import httpx
import pytest

pytest.importorskip("huggingface_hub")
pytest.importorskip("fastapi")

from contract import DataFolder
from distill.worker import data_folders
from distill.worker.cached_models import cached_students, cached_teachers
from distill.worker.data_folders import DataScan
from distill.worker.gpus import has_gpu
from distill.worker.offers import describe_device, recipes
from tests.distill.worker.conftest import running_worker, wait_for


def put(path, count, suffix=".jpg"):
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (path / f"{number}{suffix}").touch()


@pytest.fixture
def root(tmp_path):
    """A data root with one data set of each kind, and other files."""
    root = tmp_path / "data"
    for split, images in (("train", 3), ("val_on_train", 2), ("val", 4)):
        for key in ("a", "b"):
            put(root / "birds" / split / key, images)
    put(root / "team" / "fish" / "carp", 5)
    put(root / "team" / "fish" / "pike" / "nested", 2, ".PNG")
    put(root / "team" / "fish" / "eel", 1)
    put(root / "shards", 2, ".tar")
    (root / "saved").mkdir()
    (root / "saved" / "dataset_dict.json").touch()
    put(root / "teacher", 0)
    (root / "teacher" / "open_clip_config.json").touch()
    (root / "teacher" / "open_clip_model.safetensors").touch()
    (root / "photos.csv").touch()
    (root / "resnet18.safetensors").touch()
    (root / "notes.txt").touch()
    put(root / ".hidden" / "a", 1)
    put(root / "__MACOSX" / "a", 1)
    put(root / "__MACOSX" / "b", 1)
    return root


def by_path(found, root):
    return {folder.path.removeprefix(f"{root}/"): folder for folder in found.data}


def test_exports_with_boxes_are_found_as_a_training_finds_them(root):
    coco, yolo = root / "boxes" / "coco", root / "boxes" / "yolo"
    (coco / "train").mkdir(parents=True)
    (coco / "train" / "_annotations.coco.json").touch()
    yolo.mkdir()
    (yolo / "data.yaml").touch()
    found = by_path(DataScan([root / "boxes"]).find(), root / "boxes")
    assert {path: folder.kind for path, folder in found.items()} == {
        "coco": "COCO export",
        "yolo": "YOLO export",
    }


def test_a_coco_file_of_any_name_is_offered_by_itself(root):
    """Sections in any order, also in a file of more than the bytes that are looked at."""
    folder = root / "boxes"
    put(folder / "photos", 3)
    image = {"id": 1, "file_name": "0.jpg", "width": 9, "height": 9}
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}
    sections = {"images": [image] * 5_000, "annotations": [box] * 5_000, "categories": []}
    (folder / "labels.json").write_text(json.dumps({"info": {}} | sections))
    (folder / "reversed.json").write_text(json.dumps(dict(reversed(sections.items()))))
    (root / "birds" / "boxes.json").write_text(json.dumps(sections))  # beside split folders
    (folder / "package.json").write_text(json.dumps({"name": "images", "files": []}))
    (folder / "empty.json").touch()
    (folder / "dangling.json").symlink_to(root / "nothing.json")
    found = by_path(DataScan([root]).find(), root)
    exports = {path for path, data in found.items() if data.kind == "COCO export"}
    assert exports == {"boxes/labels.json", "boxes/reversed.json", "birds/boxes.json"}


def test_folders_with_a_json_file_for_each_photo_are_not_looked_into(root):
    put(root / "labelme", 21, ".json")
    (root / "labelme" / "0.json").write_text('{"images": [], "file_name": "0.jpg"}')
    assert not [path for path in by_path(DataScan([root]).find(), root) if "labelme" in path]


def test_of_runs_and_caches_only_the_students_are_offered(root):
    run, cache = root / "jobs" / "job-1", root / "jobs" / "cache"
    for folder in (run, cache):
        folder.mkdir(parents=True)
    names = ("checkpoint.safetensors", "text_bank.safetensors", "student.safetensors", "e.jsonl")
    for name in names:
        (run / name).touch()
    (cache / "features-train-1.safetensors").touch()
    found = DataScan([root / "jobs"]).find()
    assert (found.weights, found.data) == ([str(run / "student.safetensors")], [])


def test_data_sets_below_the_roots_are_found_with_classes_and_images_by_split(root):
    found = DataScan([root]).find()
    data = by_path(found, root)
    assert set(data) == {"birds", "team/fish", "shards", "saved", "photos.csv"}
    assert data["birds"] == DataFolder(
        path=str(root / "birds"),
        kind="split folders",
        classes=2,
        images={"train": 6, "val_on_train": 4, "val": 8},
    )
    fish = data["team/fish"]
    assert (fish.kind, fish.classes, fish.images) == ("class folders", 3, {"train": 8})
    kinds = {name: data[name].kind for name in ("shards", "saved", "photos.csv")}
    assert list(kinds.values()) == ["shards", "Hugging Face dataset", "list"]
    assert found.teachers == [f"local-dir:{root}/teacher"]
    assert found.weights == [str(root / "resnet18.safetensors")]
    assert found.complete


def test_the_real_bench_is_counted_as_it_is_documented(shared):
    found = DataScan([shared / "bench"]).find()
    (bench,) = [folder for folder in found.data if folder.path.endswith("tiny-imagenet-ood")]
    assert bench.classes == 120
    assert bench.images == {"train": 12_000, "val_on_train": 3_000, "val": 2_400}


def test_links_are_not_followed_and_what_cannot_be_read_is_left_out(root, tmp_path):
    put(tmp_path / "outside" / "train" / "a", 2)
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root)
    found = DataScan([root, tmp_path / "missing"]).find()
    assert "link" not in by_path(found, root) and found.complete


def test_a_folder_is_listed_again_only_when_it_has_changed(root, monkeypatch):
    listed = []
    read = data_folders._read
    monkeypatch.setattr(
        data_folders, "_read", lambda path, time: (listed.append(path), read(path, time))[1]
    )
    scan = DataScan([root])
    before = scan.find()
    assert len(listed) == len(set(listed)) > 10
    listed.clear()
    assert scan.find() == before and listed == []
    changed = root / "birds" / "train" / "a"
    (changed / "new.webp").touch()
    os.utime(changed, ns=(0, 0))
    assert by_path(scan.find(), root)["birds"].images["train"] == 7
    assert listed == [str(changed)]
    shutil.rmtree(root / "birds")
    assert "birds" not in by_path(scan.find(), root)


def test_a_pass_without_time_says_that_it_is_incomplete_and_the_next_goes_on(root, monkeypatch):
    scan = DataScan([root], seconds=-1.0)
    found = scan.find()
    assert (found.data, found.complete) == ([], False)
    monkeypatch.setattr(scan, "_seconds", 60.0)
    found = scan.find()
    assert by_path(found, root)["birds"].complete and found.complete


def test_teachers_and_students_in_the_cache_are_found(shared, tmp_path):
    hub = tmp_path / "hub"

    def cache(repository, *files):
        folder = hub / f"models--{repository.replace('/', '--')}" / "snapshots" / "1"
        folder.mkdir(parents=True)
        for name in files:
            (folder / name).touch()
        return folder

    cache("org/clip", "open_clip_config.json", "open_clip_model.safetensors")
    cache("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip_model.safetensors")
    cache("timm/resnet18.a1_in1k", "config.json", "model.safetensors")
    cache("timm/resnet50.a1_in1k", "config.json")  # its weights were not downloaded
    broken = cache("org/broken", "open_clip_config.json")
    (broken / "open_clip_model.safetensors").symlink_to(tmp_path / "nothing")
    assert cached_students(hub) == ["resnet18.a1_in1k"]
    found = cached_teachers(hub, tmp_path)
    assert found == ["ViT-B-32@laion2b_s34b_b79k", "hf-hub:org/clip"]
    (names,) = (tmp_path / "cache").iterdir()  # asked of open_clip only once
    names.write_text(json.dumps({"laion/CLIP-ViT-B-32-laion2B-s34B-b79K": ["kept"]}))
    assert cached_teachers(hub, tmp_path) == ["hf-hub:org/clip", "kept"]
    assert cached_teachers(shared / "hf-home" / "hub", tmp_path) == ["hf-hub:bench/lite0-minilm"]
    assert cached_teachers(tmp_path / "none", tmp_path) == cached_students(tmp_path / "none") == []


def test_the_device_has_a_name_and_the_presets_are_the_recipes():
    name, memory = describe_device()
    assert name and (memory is None) == (shutil.which("nvidia-smi") is None)
    assert {recipe.name for recipe in recipes()} == {"resnet", "vit"}


@pytest.mark.parametrize(
    ("visible", "found"),
    [(None, "2 × NVIDIA H200"), ("1", "NVIDIA H200"), ("", None), ("-1", None)],
)
def test_gpus_are_those_that_a_training_may_use(tmp_path, monkeypatch, visible, found):
    """A program called nvidia-smi stands in for NVIDIA's, with two GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\necho "NVIDIA H200, 143771"\n'
        'case "$*" in *--id=*) ;; *) echo "NVIDIA H200, 143771";; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    name, memory = describe_device()
    assert has_gpu() == (found is not None)
    if found is None:
        assert "cores" in name and memory is None
    else:
        assert (name, memory) == (found, 140.4)


def test_a_worker_tells_the_service_what_it_has(start_service, tmp_path, root, shared, monkeypatch):
    from enrich_service.core.settings import Settings

    address = start_service(Settings(data_dir=tmp_path / "service"))
    monkeypatch.setenv("HF_HOME", str(shared / "hf-home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with (
        httpx.Client(base_url=address, timeout=30) as client,
        running_worker(address, tmp_path / "work", "--data-root", str(root)) as process,
    ):

        def offers():
            (found,) = client.get("/v1/workers").json() or [{"offers": None}]
            return found["offers"]

        wait_for(offers)
        (worker,) = client.get("/v1/workers").json()
        assert (worker["name"], worker["running"], worker["job"]) == ("w", True, None)
        assert worker["memory_gb"] > 0
        assert offers()["data_roots"] == [str(root)] and offers()["offline"]
        paths = [folder["path"] for folder in offers()["data"]]
        assert str(root / "birds") in paths
        assert "hf-hub:bench/lite0-minilm" in offers()["teachers"]
        assert f"local-dir:{root}/teacher" in offers()["teachers"]
        assert offers()["device"].endswith(" cores") or offers()["device_memory_gb"]
        assert [recipe["name"] for recipe in offers()["recipes"]] == ["resnet", "vit"]
        assert ("tensorboard" in offers()["trackers"]) == (find_spec("tensorboard") is not None)
        process.terminate()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said


def test_a_service_that_refuses_the_list_still_gives_jobs(start_service, tmp_path, root):
    from enrich_service.core.settings import Settings

    address = start_service(Settings(data_dir=tmp_path / "service", max_body_bytes=1024))
    with (
        httpx.Client(base_url=address, timeout=30) as client,
        running_worker(address, tmp_path / "work", "--data-root", str(root)) as process,
    ):
        wait_for(lambda: client.get("/v1/workers").json())
        for line in process.stderr:
            if "does not list what this worker has" in line:
                break
        assert "exceeds 1024 bytes" in line
        assert client.get("/v1/workers").json()[0]["offers"] is None
        assert process.poll() is None
