"""The teacher: any open_clip model, named by one string with a scheme.

    ViT-B-32@laion2b_s34b_b79k    an architecture of open_clip and a pretrained tag
    hf-hub:ORGANISATION/NAME      a model on the Hugging Face hub (or in its local cache)
    local-dir:FOLDER              open_clip_config.json and open_clip_model.safetensors

Notable:
- Features are returned as float32, whatever the model computes in, and L2-normalised by default.
- Image decoding threads only crop; the device converts and normalises the pixels.
- Each distinct text is encoded once, sorted by length and with as little padding as possible, where
  padding does not change the features (causal attention, or a mask over the padding).
"""

import difflib
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import CenterCrop

from contract import Precision
from distill.data.files.image_file import crop_elongated
from distill.data.pixels import Progress
from distill.errors import ModelError
from distill.models.devices import teacher_dtype
from distill.models.safe_weights import safetensors_only

TEXT_BATCH: Final = 64
CPU: Final = torch.device("cpu")


@dataclass(frozen=True)
class Teacher:
    """A frozen vision-language model. `dim` is the width of the space that both towers share."""

    name: str
    model: nn.Module
    tokenizer: Callable[..., Tensor]
    preprocess: Callable[[Image.Image], Tensor]  # → [3, image_size, image_size]
    image_size: int
    context_length: int
    dim: int
    device: torch.device
    dtype: torch.dtype  # of the image tower's activations; the weights are float32

    @torch.inference_mode()
    def encode_image(self, images: Tensor, *, normalize: bool = True) -> Tensor:
        """Features [batch, dim] float32 on the CPU of preprocessed images [batch, 3, size, size].

        Of unit length with `normalize`. Computed in `dtype`: in bfloat16 within 1e-2 of float32 in
        cosine.
        """
        features = self._image_features(images.to(self.device)).cpu()
        return F.normalize(features, dim=-1) if normalize else features

    @torch.inference_mode()
    def encode_crops(self, crops: Tensor) -> Tensor:
        """Raw features [batch, dim] float32 on the device of uint8 `crops` (see `crop`).

        Does not wait for the device, if `crops` are in pinned memory.
        """
        mean, std = self.mean_and_std
        images = crops.to(self.device, non_blocking=True).float().div_(255).sub_(mean).div_(std)
        return self._image_features(images)

    def _image_features(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        reduced = self.dtype is not torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=reduced):
            features: Tensor = self.model.encode_image(images)  # type: ignore[operator]
        return features.float()

    def crop(self, image: Image.Image) -> Tensor:
        """What `preprocess` sees of `image` before it normalises: uint8 [3, size, size]."""
        *geometry, _to_tensor, _normalize = self.preprocess.transforms  # type: ignore[attr-defined]
        if any(isinstance(transform, CenterCrop) for transform in geometry):
            image = crop_elongated(image)
        for transform in geometry:
            image = transform(image)
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())

    @cached_property
    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [3, 1, 1] for normalising images in [0, 1], on the device."""
        config = open_clip.get_model_preprocess_cfg(self.model)
        mean, std = (
            torch.tensor(config[name], device=self.device).view(3, 1, 1) for name in ("mean", "std")
        )
        return mean, std

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], progress: Progress | None = None) -> Tensor:
        """Unit features [texts, dim] float32. Tokens beyond the context are truncated.

        `progress` is called with (texts encoded, all different texts).
        """
        unique = sorted(set(texts), key=lambda text: (len(text), text))
        features: dict[str, Tensor] = {}
        for start in range(0, len(unique), TEXT_BATCH):
            batch = unique[start : start + TEXT_BATCH]
            tokens = self.tokenizer(batch).to(self.device)
            encoded = F.normalize(self.encode_tokens(tokens).float(), dim=-1).cpu()
            features.update(zip(batch, encoded, strict=True))
            if progress:
                progress(len(features), len(unique))
        return torch.stack([features[text] for text in texts])

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Features [texts, dim], not normalised, of `tokens` [texts, context_length].

        Differentiable with respect to what a caller hooks into the token embedding.
        """
        length = self._used_length(tokens)
        if length is None or length == tokens.shape[1]:
            return self.model.encode_text(tokens)  # type: ignore[operator, no-any-return]
        trimmed = {
            name: value[:length] if "positional" in name else value[:length, :length]
            for name, value in self._sized_by_context.items()
        }
        return torch.func.functional_call(  # type: ignore[no-any-return]
            _TextTower(self.model), trimmed, (tokens[:, :length],)
        )

    def token_count(self, text: str) -> int:
        """Tokens of `text` with start and end; beyond `context_length` they are truncated."""
        if (inner := getattr(self.tokenizer, "tokenizer", None)) is not None:
            with _quiet():
                return len(inner(self.tokenizer.clean_fn(text))["input_ids"])  # type: ignore[attr-defined]
        return len(self.tokenizer.encode(text)) + 2  # type: ignore[attr-defined]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all weights. With an equal `dtype` it means equal features."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _used_length(self, tokens: Tensor) -> int | None:
        """Tokens of the longest text of the batch; None if padding changes the features."""
        text = getattr(self.model, "text", self.model)
        if (config := getattr(text, "config", None)) is not None:  # a Hugging Face tower: masked
            return int((tokens != config.pad_token_id).sum(dim=1).max())
        pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
        causal = getattr(text, "attn_mask", None) is not None
        if pool == "argmax" and causal and getattr(text, "cls_emb", None) is None:
            return int(tokens.argmax(dim=1).max()) + 1  # the end token is the largest
        return None

    @cached_property
    def _sized_by_context(self) -> dict[str, Tensor]:
        prefix = "model.text." if hasattr(self.model, "text") else "model."
        text = getattr(self.model, "text", self.model)
        names = ("positional_embedding", "attn_mask")
        return {
            prefix + name: value.detach()
            for name in names
            if isinstance(value := getattr(text, name, None), Tensor)
        }


class _TextTower(nn.Module):
    """`encode_text` as a forward, so that functional_call can swap in trimmed positions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens)  # type: ignore[operator, no-any-return]


def load_teacher(
    name: str, *, device: torch.device = CPU, precision: Precision = "auto"
) -> Teacher:
    """The teacher called `name` on `device`, frozen, with its weights in float32.

    Raises:
        ModelError: the name is unknown, or its weights are missing, damaged or do not fit.
    """
    architecture, tag = parse_name(name)
    with _quiet(), safetensors_only():
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(
                architecture, pretrained=tag, device=device, require_pretrained=True
            )
            tokenizer = open_clip.get_tokenizer(architecture)
        except Exception as error:  # open_clip, the hub and safetensors raise dozens of types
            raise ModelError(_explain(name, error)) from error
    model.eval().requires_grad_(False)
    size = model.visual.image_size
    with torch.inference_mode():
        probe = tokenizer(["a"]).to(device)
        dim = model.encode_text(probe).shape[-1]
    return Teacher(
        name=name,
        model=model.to(memory_format=torch.channels_last),
        tokenizer=tokenizer,
        preprocess=preprocess,
        image_size=size if isinstance(size, int) else size[0],
        context_length=probe.shape[-1],
        dim=dim,
        device=device,
        dtype=teacher_dtype(device, precision),
    )


def model_config(teacher: Teacher) -> dict[str, Any]:
    """open_clip's configuration of the towers of `teacher`."""
    config: dict[str, Any] = open_clip.get_model_config(parse_name(teacher.name)[0])
    return config


def parse_name(name: str) -> tuple[str, str | None]:
    """open_clip's (architecture, pretrained tag) for a teacher name. Loads and downloads nothing.

    Raises:
        ModelError: open_clip has no such architecture or tag, or a local folder lacks files.
    """
    if name.startswith("hf-hub:"):
        return name, None
    if name.startswith("local-dir:"):
        _check_folder(name, Path(name.removeprefix("local-dir:")))
        return name, None
    architecture, at, tag = name.partition("@")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if architecture not in open_clip.list_models():
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=3, cutoff=0.4)
        raise ModelError(
            f"open_clip knows no teacher {architecture!r}"
            + (f": did you mean {' or '.join(near)}?" if near else "")
            + " (or give hf-hub:ORGANISATION/NAME or local-dir:FOLDER)"
        )
    if not at or tag not in tags:
        raise ModelError(
            f"the teacher {architecture} needs one of its pretrained tags behind an '@': "
            f"{', '.join(tags) or 'it has none'}"
        )
    return architecture, tag


def _check_folder(name: str, folder: Path) -> None:
    config, weights = folder / "open_clip_config.json", folder / "open_clip_model.safetensors"
    for path in (config, weights):
        if not path.is_file():
            raise ModelError(f"the teacher {name} has no file {path}: check the folder's name")
    try:
        json.loads(config.read_bytes())["model_cfg"]
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{config} is no open_clip configuration: copy the file again") from None


def _explain(name: str, error: Exception) -> str:
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    kinds = {type(link).__name__ for link in chain}
    if name.startswith("hf-hub:") and kinds & {
        "LocalEntryNotFoundError", "ConnectError", "ConnectionError", "OfflineModeIsEnabled",
        "RepositoryNotFoundError", "GatedRepoError", "HfHubHTTPError", "EntryNotFoundError",
    }:  # fmt: skip
        return (
            f"cannot get the teacher {name}: check its name and the connection to the hub, or "
            "point HF_HOME at a cache that holds it"
        )
    if "PickledWeights" in kinds:
        return (
            f"the weights of the teacher {name} are pickled, which can run arbitrary code: convert "
            "them to open_clip_model.safetensors, or choose a tag that has them so"
        )
    if "SafetensorError" in kinds:
        return f"the weights of the teacher {name} are damaged: copy or download them again"
    return f"cannot load the teacher {name}: {' '.join(str(error).split())[:300]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress logs and warnings of open_clip, transformers and the hub."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def preprocessing(teacher: Teacher) -> dict[str, Any]:
    """The preprocessing of images as plain values, for a cache key."""
    return {"image_size": teacher.image_size, "transform": str(teacher.preprocess)}
