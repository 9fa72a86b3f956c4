"""A tiny open_clip model on disk: random weights, but every part real."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

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
