"""The training loop. It knows nothing of HTTP, command lines or files beyond what it is handed.

Notable:
- The order of images and their views are functions of (seed, epoch, step): a run that was killed
  and resumed ends at the same numbers as an unbroken one on the same machine.
- Losses are computed in float32 outside of autocast; only the network runs in bfloat16.
- An epoch is whole batches in random order; the few images that fill none are left out of it.
- Several processes take a share of each batch: together they learn what one would from the whole.
  (Batch norm is the exception: it normalises each share by itself.)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from contract import Epoch, TrainConfig
from distill.data.augment import draw, see
from distill.errors import CheckpointError, DataError, DistillError, UserError
from distill.evaluation.accuracy import predict
from distill.method.objective import Balance, Batch, measure
from distill.models.precision import training_precision
from distill.models.student import Student
from distill.training.checkpoint import Checkpoint, flatten, restore
from distill.training.distributed import anywhere, gather, processes, share
from distill.training.schedule import learning_rate, make_optimiser

CHECKPOINT_SECONDS: Final = 300.0
CLIP_NORM: Final = 1.0


class Interrupted(DistillError):
    """Training stopped on request; the checkpoint lets it go on."""


@dataclass(frozen=True)
class TrainingData:
    """All that a run learns from. Features are float32; the losses make them unit vectors."""

    pixels: Tensor  # [images, 3, size, size] uint8
    targets: Tensor  # [images] indices into `text`
    teacher: Tensor  # [images, dim], or [images, views, dim] of the stored views
    text: Tensor  # [classes, dim]
    seen_pixels: Tensor  # held-out images of the same classes
    seen_targets: Tensor
    seen_text: Tensor
    captions: Tensor | None = None  # [images, dim], zeros where an image has none
    views: Tensor | None = None  # [images, views, 6]: what was drawn for each stored view

    def look(
        self, batch: Tensor, epoch: int, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Views [share, 3, size, size] of this process's share of the images, and what the teacher
        made of all of them [batch, dim].

        Either fresh views, beside features of the clean images, or one of each image's stored ones:
        with every epoch the next one, so that all are seen before one comes again.
        """
        own = share(len(batch))
        pixels = self.pixels[batch[own]].to(device)
        if self.views is None:
            return see(pixels, draw(len(batch), generator)[own]), self.teacher[batch].to(device)
        one = (batch + epoch) % self.views.shape[1]
        return see(pixels, self.views[batch, one][own]), self.teacher[batch, one].to(device)


def train(
    config: TrainConfig,
    student: Student,
    data: TrainingData,
    *,
    checkpoint: Checkpoint | None,
    on_epoch: Callable[[Epoch], None],
    should_stop: Callable[[], bool],
    on_step: Callable[[int, int], None] | None = None,
    resume: bool = True,
    order: Callable[[torch.Generator], Tensor] | None = None,
) -> tuple[Epoch, ...]:
    """Train `student` in place; its epochs. Seeds torch's global generator at each step.

    `order` gives the indices of an epoch's images, batch after batch; by default all at random.
    Every process of a training calls this; the first one writes the checkpoints.

    Raises:
        Interrupted: `should_stop` came true in one of the processes; the checkpoint is written.
        CheckpointError: the checkpoint to resume from is damaged, of another run or of another
            number of processes.
        DataError: there are fewer than two images a process, or too few to accumulate.
        UserError: no loss has a weight, or the features are no longer numbers.
    """
    count = processes().num_processes
    size = min(config.batch_size, len(data.pixels) // count) * count  # of all processes
    steps = len(data.pixels) // max(size, 1) // config.accumulate * config.accumulate
    if size < 2 * count or not steps:
        raise DataError(
            f"there are {len(data.pixels)} images to train on, too few for a step: add some to "
            "train/, or lower `accumulate` or the number of processes"
        )
    if not any(weight for _, weight in config.losses):
        raise UserError("every loss has the weight 0: give at least one of them a weight")
    accelerator = Accelerator(
        cpu=processes().device.type == "cpu", gradient_accumulation_steps=config.accumulate
    )
    device = accelerator.device
    student, text = student.to(device), data.text.to(device)
    network = accelerator.prepare_model(student)  # shares gradients, where there are processes
    balance = Balance(config).to(device)
    learner = nn.ModuleList([student, balance])  # all that is learned
    optimiser = make_optimiser(config, learner)
    total = steps * config.epochs
    epochs: list[Epoch] = []
    first_epoch, first_step, sums, seconds = 0, 0, dict[str, float](), 0.0
    if checkpoint and resume and (found := checkpoint.load()):
        tensors, counters = found
        if counters["batch"] != size:
            raise CheckpointError(
                f"the checkpoint {checkpoint.path} is of batches of {counters['batch']} images over"
                f" all processes, not of {size}: resume with as many processes as it began with"
            )
        restore(learner, optimiser, tensors)
        epochs = [Epoch.model_validate(epoch) for epoch in counters["epochs"]]
        first_epoch, first_step = counters["epoch"], counters["step"]
        sums, seconds = counters["sums"], counters["seconds"]

    def keep(epoch: int, step: int) -> float:
        """Write the checkpoint from which `step` of `epoch` is next; when that was."""
        if checkpoint and processes().is_main_process:
            counters = {"epoch": epoch, "step": step, "sums": sums, "seconds": seconds}
            counters["batch"] = size
            counters["epochs"] = [each.model_dump(mode="json") for each in epochs]
            checkpoint.save(flatten(learner, optimiser), counters)
        return time.monotonic()

    kept = time.monotonic()
    for epoch in range(first_epoch, config.epochs):
        shuffle = _generator(config.seed, epoch)
        indices = order(shuffle) if order else torch.randperm(len(data.pixels), generator=shuffle)
        network.train()
        for step in range(first_step, steps):
            began = time.monotonic()
            batch = indices[step * size : (step + 1) * size]
            generator = _generator(config.seed, epoch, step)
            # For the student's dropout, which is to differ between the shares.
            torch.manual_seed(generator.initial_seed() + processes().process_index)
            images, teacher = data.look(batch, epoch, generator, device)
            rate = learning_rate(config, epoch * steps + step, steps, total)
            for group in optimiser.param_groups:
                group["lr"] = rate
            with accelerator.accumulate(network):
                with training_precision(device):
                    output = network(images)
                features = Batch(
                    student=_check_finite(config, gather(output.float())),
                    teacher=teacher,
                    text=text,
                    targets=data.targets[batch].to(device),
                    captions=None if data.captions is None else data.captions[batch].to(device),
                )
                parts = measure(features, config)
                loss = balance(parts)
                accelerator.backward(loss)
            if accelerator.sync_gradients:
                nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + part.item()
            sums["loss"] = sums.get("loss", 0.0) + loss.item()
            seconds += time.monotonic() - began
            if on_step:
                on_step(epoch * steps + step + 1, total)
            if not accelerator.sync_gradients:
                continue
            if anywhere(should_stop()):
                keep(epoch, step + 1)
                processes().wait_for_everyone()  # an end of one would end the first while it writes
                raise Interrupted
            if time.monotonic() - kept > CHECKPOINT_SECONDS:
                kept = keep(epoch, step + 1)
        seen = _check_finite(config, student.encode(data.seen_pixels, student.one_view))
        hits = predict(seen, data.seen_text) == data.seen_targets
        means = {name: value / steps for name, value in sums.items()}
        epochs.append(
            Epoch(
                epoch=epoch + 1,
                learning_rate=learning_rate(config, (epoch + 1) * steps - 1, steps, total),
                loss=means.pop("loss"),
                losses=means,
                weights=balance.weights() if config.adaptive_weights else {},
                seen_top1=100 * hits.double().mean().item(),
                seconds=seconds,
                images_per_second=steps * size / max(seconds, 1e-9),
            )
        )
        first_step, sums, seconds = 0, {}, 0.0
        kept = keep(epoch + 1, 0)
        on_epoch(epochs[-1])
    return tuple(epochs)


def _check_finite(config: TrainConfig, features: Tensor) -> Tensor:
    if not bool(features.isfinite().all()):
        raise UserError(
            "the training diverged (the student's features are no longer numbers): lower "
            f"learning_rate from {config.learning_rate:g} and start over"
        )
    return features


def _generator(*counters: int) -> torch.Generator:
    seed = 0
    for counter in counters:
        seed = (seed * 1_000_003 + counter + 1) % 2**63
    return torch.Generator().manual_seed(seed)
