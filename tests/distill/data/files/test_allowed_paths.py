import pickle
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from contract import TrainConfig
from distill.data.files.allowed_paths import check_allowed_paths
from distill.errors import DataError, ModelError
from distill.models.safe_weights import PickledWeights, safetensors_only
from distill.models.student import build_student
from distill.models.teacher import load_teacher


def config(data, teacher="hf-hub:a/b", **more):
    return TrainConfig(data=str(data), teacher=teacher, **more)


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "root" / "birds" / "train" / "duck").mkdir(parents=True)
    (tmp_path / "root" / "birds" / "train" / "duck" / "1.png").write_bytes(b"")
    (tmp_path / "secret" / "train").mkdir(parents=True)
    (tmp_path / "secret" / "1.png").write_bytes(b"")
    return tmp_path / "root"


def test_folders_inside_the_roots_may_be_read(root, monkeypatch):
    check_allowed_paths(config(root / "birds"), [root])
    check_allowed_paths(
        config(root / "birds", f"local-dir:{root / 'birds'}"), [Path("/other"), root]
    )
    monkeypatch.chdir(root)
    check_allowed_paths(config("birds"), [root])
    (root / "birds" / "val").symlink_to(root / "birds" / "train")  # a link, but not out
    check_allowed_paths(config(root / "birds"), [root])


@pytest.mark.parametrize(
    "data", ["{root}/../secret", "{root}/birds/../birds", "/etc", "{root}x", "../secret"]
)
def test_paths_outside_of_the_roots_are_refused(root, data, monkeypatch):
    monkeypatch.chdir(root)
    with pytest.raises(DataError, match="--data-root"):
        check_allowed_paths(config(data.format(root=root)), [root])
    with pytest.raises(DataError, match="teacher"):
        check_allowed_paths(config(root / "birds", f"local-dir:{data.format(root=root)}"), [root])


@pytest.mark.parametrize("captions", ["../captions.jsonl", "/etc/hostname"])
def test_captions_outside_of_the_roots_are_refused(root, captions):
    job = config(root / "birds", losses={"cap": 1}, captions=captions)
    with pytest.raises(DataError, match="captions"):
        check_allowed_paths(job, [root])


@pytest.mark.parametrize("link", ["birds/val", "birds/train/duck/2.png", "birds/train/newt"])
def test_links_that_lead_out_are_refused(root, link):
    target = root.parent / "secret" / ("1.png" if link.endswith("png") else "train")
    (root / link).symlink_to(target)
    with pytest.raises(DataError, match="has a link to outside"):
        check_allowed_paths(config(root / "birds"), [root])
    (root / "elsewhere").symlink_to(root.parent / "secret")
    with pytest.raises(DataError, match="--data-root"):
        check_allowed_paths(config(root / "elsewhere"), [root])


def test_weights_to_start_from_must_be_in_a_root(tmp_path):
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    (root / "w.safetensors").touch()
    (tmp_path / "secret.safetensors").touch()
    (root / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    check_allowed_paths(config(root / "images", weights=str(root / "w.safetensors")), [root])
    for name in ("../secret.safetensors", "link.safetensors", "images/../../secret.safetensors"):
        with pytest.raises(DataError, match=r"the job's weights .* is not below"):
            check_allowed_paths(config(root / "images", weights=str(root / name)), [root])


def test_a_student_has_only_one_initialisation():
    with pytest.raises(ValidationError, match="only one of `pretrained` and `weights`"):
        config("/d", pretrained=True, weights="/d/w.safetensors")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("teacher", "https://example.org/w.pt"),
        ("teacher", "file:/etc/passwd"),
        ("student", "hf-hub:a/b"),
        ("student", "local-dir:/data"),
        ("student", "../resnet18"),
    ],
)
def test_names_of_other_schemes_are_refused_before_a_job_is_queued(field, value):
    with pytest.raises(ValidationError, match=f"a {field} is"):
        config("/d", **{field: value})


class Planted:
    """What a pickle can do when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that puts a model with a planted pickle into an offline cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(model: str, weights: str, **files: bytes) -> Path:
        folder = tmp_path / "hub" / f"models--{model.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
        for name, content in files.items():
            (snapshot / f"{name}.json").write_bytes(content)
        marker = tmp_path / "ran"
        (snapshot / weights).write_bytes(pickle.dumps(Planted(marker)))
        return marker

    return put


def test_a_teacher_whose_weights_are_pickled_is_refused_and_not_read(hub, tiny_teacher_folder):
    words = (tiny_teacher_folder / "open_clip_config.json").read_bytes()
    marker = hub("a/b", "open_clip_pytorch_model.bin", open_clip_config=words)
    with pytest.raises(ModelError, match="are pickled"):
        load_teacher("hf-hub:a/b")
    assert not marker.exists()


def test_a_student_whose_weights_are_pickled_is_refused_and_not_read(hub):
    marker = hub("timm/test_resnet.r160_in1k", "pytorch_model.bin")
    with pytest.raises(ModelError, match="are pickled"):
        build_student("test_resnet", 8, image_size=32, pretrained=True)
    assert not marker.exists()


def test_pickles_can_be_read_again_afterwards(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    with safetensors_only(), pytest.raises(PickledWeights):
        torch.load(tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt")["a"] == 1
