"""The training loop. It knows nothing of HTTP, command lines or files beyond what it is handed.

Notable:
- The order of images and their views are functions of (seed, epoch, step): a run that was killed
  and resumed ends at the same numbers as an unbroken one on the same machine.
- Losses are computed in float32 outside of autocast; only the network runs in bfloat16.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from contract import Epoch, TrainConfig
from distill import losses
from distill.augment import augment
from distill.checkpoint import Checkpoint
from distill.errors import DistillError, UserError
from distill.evaluate import predict
from distill.student import Student

CHECKPOINT_SECONDS: Final = 300.0
CLIP_NORM: Final = 1.0


class Interrupted(DistillError):
    """Training stopped on request; the checkpoint lets it go on."""


@dataclass(frozen=True)
class TrainingData:
    """All that a run learns from. Features are unit vectors, float32."""

    pixels: Tensor  # [images, 3, size, size] uint8
    targets: Tensor  # [images] indices into `text`
    teacher: Tensor  # [images, dim]
    text: Tensor  # [classes, dim]
    seen_pixels: Tensor  # held-out images of the same classes
    seen_targets: Tensor
    seen_text: Tensor


def train(
    config: TrainConfig,
    student: Student,
    data: TrainingData,
    *,
    checkpoint: Checkpoint,
    resume: bool,
    on_epoch: Callable[[Epoch], None],
    on_step: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> tuple[Epoch, ...]:
    """Train `student` in place; its epochs.

    Raises:
        Interrupted: `should_stop` came true; the checkpoint is written.
        CheckpointError: the checkpoint to resume from is damaged or of another run.
        UserError: the loss is no longer a number.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student.to(device)
    text = data.text.to(device)
    optimiser = _optimiser(config, student)
    steps = max(1, len(data.pixels) // config.batch_size)
    size = min(config.batch_size, len(data.pixels))
    total = steps * config.epochs
    epochs: list[Epoch] = []
    first_epoch, first_step, sums, seconds = 0, 0, dict[str, float](), 0.0
    if resume and (found := checkpoint.load()) is not None:
        tensors, counters = found
        _restore(student, optimiser, tensors)
        epochs = [Epoch.model_validate(epoch) for epoch in counters["epochs"]]
        first_epoch, first_step = counters["epoch"], counters["step"]
        sums, seconds = counters["sums"], counters["seconds"]

    def keep(epoch: int, step: int) -> None:
        counters = {
            "epoch": epoch,
            "step": step,
            "sums": sums,
            "seconds": seconds,
            "epochs": [each.model_dump(mode="json") for each in epochs],
        }
        checkpoint.save(_tensors(student, optimiser), counters)

    kept = time.monotonic()
    for epoch in range(first_epoch, config.epochs):
        order = torch.randperm(len(data.pixels), generator=_generator(config.seed, epoch))
        student.train()
        for step in range(first_step, steps):
            began = time.monotonic()
            batch = order[step * size : (step + 1) * size]
            generator = _generator(config.seed, epoch, step)
            images = augment(data.pixels[batch], generator).to(device)
            rate = _learning_rate(config, epoch * steps + step, steps, total)
            for group in optimiser.param_groups:
                group["lr"] = rate
            with torch.autocast(device.type, torch.bfloat16, enabled=_has_bfloat16(device)):
                output = student(images)
            parts = _losses(
                config,
                output.float(),
                data.teacher[batch].to(device),
                text,
                data.targets[batch].to(device),
            )
            loss = torch.stack([weight * part for weight, part in parts.values()]).sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
            optimiser.step()
            for name, (_, part) in parts.items():
                sums[name] = sums.get(name, 0.0) + part.item()
            sums["loss"] = sums.get("loss", 0.0) + loss.item()
            seconds += time.monotonic() - began
            on_step(epoch * steps + step + 1, total)
            if should_stop():
                keep(epoch, step + 1)
                raise Interrupted
            if time.monotonic() - kept > CHECKPOINT_SECONDS:
                keep(epoch, step + 1)
                kept = time.monotonic()
        means = {name: value / steps for name, value in sums.items()}
        hits = predict(student.encode(data.seen_pixels), data.seen_text) == data.seen_targets
        epochs.append(
            Epoch(
                epoch=epoch + 1,
                learning_rate=_learning_rate(config, (epoch + 1) * steps - 1, steps, total),
                loss=means.pop("loss"),
                losses=means,
                seen_top1=100 * hits.double().mean().item(),
                seconds=seconds,
                images_per_second=steps * size / max(seconds, 1e-9),
            )
        )
        first_step, sums, seconds = 0, {}, 0.0
        keep(epoch + 1, 0)
        kept = time.monotonic()
        on_epoch(epochs[-1])
    return tuple(epochs)


def _losses(
    config: TrainConfig, student: Tensor, teacher: Tensor, text: Tensor, targets: Tensor
) -> dict[str, tuple[float, Tensor]]:
    """Weight and value of each loss that has a weight.

    Raises:
        UserError: the features hold NaN.
    """
    weights, tau = config.losses, config.temperature
    wanted: dict[str, tuple[float, Callable[[], Tensor]]] = {
        "cls": (weights.cls, lambda: losses.l_cls(student, text, targets, temperature=tau)),
        "mse": (weights.mse, lambda: losses.l_mse(student, teacher)),
        "im_cst": (weights.im_cst, lambda: losses.l_im_cst(student, teacher, temperature=tau)),
        "vlprox": (
            weights.vlprox,
            lambda: losses.l_vlprox(
                student,
                teacher,
                text,
                targets if config.vlprox_filter else None,
                k=config.vlprox_k,
                temperature=tau,
            ),
        ),
    }
    if not bool(student.isfinite().all()):
        raise UserError(
            "the training diverged (the student's features are no longer numbers): lower "
            f"learning_rate from {config.learning_rate:g} and start over"
        )
    return {name: (weight, loss()) for name, (weight, loss) in wanted.items() if weight > 0}


def _optimiser(config: TrainConfig, student: Student) -> torch.optim.AdamW:
    """AdamW; biases and normalisation weights are not decayed."""
    parameters = [p for p in student.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def _learning_rate(config: TrainConfig, step: int, steps: int, total: int) -> float:
    """Linear warm-up over `warmup_epochs`, then half a cosine down to 0."""
    warmup = min(round(config.warmup_epochs * steps), total - 1)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _generator(*counters: int) -> torch.Generator:
    seed = 0
    for counter in counters:
        seed = (seed * 1_000_003 + counter + 1) % 2**63
    return torch.Generator().manual_seed(seed)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is quicker than float32 here."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _tensors(student: Student, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and optimiser state, flat and named, for a checkpoint."""
    state = {f"student.{name}": value for name, value in student.state_dict().items()}
    for index, slots in optimiser.state_dict()["state"].items():
        state |= {f"optimiser.{index}.{slot}": value for slot, value in slots.items()}
    return state


def _restore(
    student: Student, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    student.load_state_dict(
        {
            name.removeprefix("student."): value
            for name, value in tensors.items()
            if name.startswith("student.")
        }
    )
    state = optimiser.state_dict()
    state["state"] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, slot = name.split(".")
            state["state"].setdefault(int(index), {})[slot] = value
    optimiser.load_state_dict(state)
