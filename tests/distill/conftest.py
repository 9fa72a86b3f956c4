"""A small teacher with random weights and a handful of images: enough to see mechanics at work."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("torch")

import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from contract import Release, ReleaseLabel, TrainConfig, release_hash
from demo.world import charms, write_world
from tests.distill.forked import fork_server, running_fork_server  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from distill.export.classifier_folder import Exported
    from distill.export.finished_run import FinishedRun

TINY = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "width": 32,
            "head_width": 16,
            "layers": 2,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


def write_teacher(folder: Path, config: dict = TINY, seed: int = 0) -> str:
    """Write an open_clip model of random weights to `folder`; gives its 'local-dir:…' name."""
    folder.mkdir(parents=True, exist_ok=True)
    model_config = json.loads(json.dumps(config["model_cfg"]))
    model_class = (
        open_clip.CustomTextCLIP if model_config.pop("custom_text", False) else open_clip.CLIP
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(**model_config)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of a tiny open_clip teacher: 32 dimensions, images of 32 px, 77 tokens."""
    return write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def tiny_teacher_folder(tiny_teacher) -> Path:
    return Path(tiny_teacher.removeprefix("local-dir:"))


@pytest.fixture
def shared_hub(shared, monkeypatch) -> None:
    """The hub is the cache beside the project; nothing is downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(shared / "hf-home" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def make_release(names: dict[str, str], descriptions: dict[str, str] | None = None) -> Release:
    labels = tuple(
        ReleaseLabel(key=key, name=name, description=(descriptions or {}).get(key))
        for key, name in names.items()
    )
    return Release(
        id=1,
        name="test",
        label_set="test",
        hash=release_hash(labels),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        labels=labels,
    )


@pytest.fixture
def image_folder(tmp_path) -> Callable[..., Path]:
    """A function that writes plain-coloured noisy images in the paper's layout."""

    def make(splits: dict[str, dict[str, int]], size: int = 40) -> Path:
        root = tmp_path / "images"
        rng = np.random.default_rng(0)
        for split, classes in splits.items():
            for place, (key, count) in enumerate(classes.items()):
                folder = root / split / key
                folder.mkdir(parents=True)
                colour = np.array([40 + 70 * (place % 3), 40 + 50 * (place // 3), 120])
                for index in range(count):
                    noise = rng.integers(-30, 30, (size, size + 8, 3))
                    pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / f"{index:03}.png")
        return root

    return make


@pytest.fixture
def colours() -> Release:
    """A release of six colours that has every kind of text."""
    labels = tuple(
        ReleaseLabel(
            key=name,
            name=name,
            description=f"all {name}",
            attributes={"all": (name,)},
            sentences=(f"all {name}",),
            captions=(f"a photo of {name}",),
        )
        for name in COLOURS
    )
    release = make_release({name: name for name in COLOURS})
    return release.model_copy(update={"labels": labels, "hash": release_hash(labels)})


COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 200, 40),
    "blue": (40, 40, 200),
    "yellow": (200, 200, 40),
    "purple": (200, 40, 200),
    "white": (225, 225, 225),
}
SPLITS = {
    "train": ("red", "green", "blue"),
    "val_on_train": ("red", "green", "blue"),
    "val": ("yellow", "purple", "white"),
}


@pytest.fixture(scope="session")
def colour_images(tmp_path_factory) -> Path:
    """Images of six colours in the paper's layout: three seen, three unseen."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, names in SPLITS.items():
        for name in names:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(16):
                noise = rng.integers(-30, 30, (32, 32, 3))
                pixels = np.clip(noise + COLOURS[name], 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def colour_teacher(tmp_path_factory) -> str:
    """A tiny CLIP that was taught six colours, by their names and by "all red" behind them."""
    folder = tmp_path_factory.mktemp("colour-teacher")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**TINY["model_cfg"])
        names = [f"a photo of {name}" for name in COLOURS]
        tokens = open_clip.tokenize(names + [f"a photo of {name} . all {name}" for name in COLOURS])
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        colours = torch.tensor(list(COLOURS.values())).float()[:, :, None, None]
        for _ in range(40):
            pixels = (colours + 60 * torch.rand(6, 3, 32, 32) - 30).clamp(0, 255) / 127.5 - 1
            seen = model.encode_image(pixels, normalize=True)
            said = model.encode_text(tokens, normalize=True)
            loss = sum(
                torch.nn.functional.cross_entropy(10 * seen @ texts.T, torch.arange(6))
                for texts in said.split(6)
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    (folder / "open_clip_config.json").write_text(json.dumps(TINY))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


DEMO = Path(__file__).parents[2] / "demo"


@pytest.fixture(scope="session")
def charm_release() -> Release:
    """The demo's classes with the description and the attributes that were recorded for each."""
    replies: dict[str, dict[str, dict]] = {}
    for line in (DEMO / "replies.jsonl").read_text(encoding="utf-8").splitlines():
        reply = json.loads(line)  # the last one of a label and prompt is the valid one
        replies.setdefault(reply["label"], {})[reply["prompt"]] = reply["reply"]
    labels = tuple(
        ReleaseLabel(
            key=charm.key,
            name=charm.name,
            description=json.loads(replies[charm.name]["visual-description"])["description"],
            attributes={
                name: (values,) if isinstance(values, str) else tuple(values)
                for name, values in json.loads(replies[charm.name]["attributes"]).items()
            },
        )
        for charm in charms()
    )
    return Release(
        id=1,
        name="charms",
        label_set="charms",
        hash=release_hash(labels),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        labels=labels,
    )


@pytest.fixture(scope="session")
def charm_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's world with a few images a class, and a cache of what the teacher makes of them."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, train=5, val_on_train=2, val=6)
    return folder


@pytest.fixture(scope="session")
def charm_run(charm_world: Path, charm_release: Release) -> Path:
    """The folder of a finished run: a small student, an epoch of the demo's teacher."""
    from distill.pipeline.job import run_job

    config = TrainConfig(
        data=str(charm_world),
        teacher=f"local-dir:{DEMO / 'teacher'}",
        student="test_resnet",
        image_size=32,
        epochs=1,
        batch_size=36,
        export=False,  # exported_charms does it where it is needed
    )
    out = charm_world / "run"
    run_job(
        config,
        charm_release,
        out,
        cache=charm_world / "cache",
        on_event=lambda *_: None,
        should_stop=lambda: False,
    )
    return out


@pytest.fixture(scope="session")
def finished_charm_run(charm_run: Path, charm_world: Path) -> "FinishedRun":
    """That run, loaded to be exported."""
    from distill.export.finished_run import load_run

    return load_run(charm_run, cache=charm_world / "cache", bar=lambda _: lambda *_: None)


@pytest.fixture(scope="session")
def exported_charms(finished_charm_run, charm_world: Path, brief_timing) -> "Exported":
    """The classifier folder of that run."""
    from distill.export.classifier_folder import export_run

    out, cache = charm_world / "classifier", charm_world / "cache"
    return export_run(finished_charm_run, out, cache=cache, progress=lambda *_: None)


@pytest.fixture
def classifier_folder(exported_charms, tmp_path: Path) -> Path:
    """A copy of that folder, to be changed."""
    return shutil.copytree(exported_charms.folder, tmp_path / "charms")
