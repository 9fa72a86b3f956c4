"""The training loop. It knows nothing of HTTP, command lines or files beyond what it is given.

Notable:
- The order of images and their views are functions of (seed, epoch, step): a run that was killed
  and resumed ends with the same numbers as an uninterrupted one on the same machine; on a GPU,
  where some functions add in any order, with nearly the same.
- Losses are computed in float32 outside of autocast; only the network runs in bfloat16.
- On a GPU no step waits for the device, except with L_cap: sums of losses stay there, and whether
  features are finite and whether to stop is asked every CHECK_STEPS steps. On a CPU it is asked at
  each step.
- The next batches of streamed pixels are decoded while a step is computed.
- On a GPU the data is kept in its memory if it fits in half of what is free; otherwise batches are
  copied from pinned memory.
- An epoch is whole batches in random order; remaining images that do not fill a batch are skipped.
- Several processes each take a share of every batch, of which each reads only its own images and
  features; together they compute the gradient of the whole batch. (Batch norm is the exception: it
  normalises each share separately.) Each encodes its share of the validation images.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from contract import Epoch, TrainConfig
from distill.data.augment import apply_views, sample_views
from distill.data.streamed_pixels import Pixels, read_batches
from distill.data.to_device import to_device
from distill.errors import CheckpointError, DataError, Interrupted, UserError
from distill.evaluation.accuracy import predict
from distill.method.objective import Features, LossBalance, Objective, compute_losses
from distill.models.precision import training_precision
from distill.models.student import EVALUATION_BATCH, Student
from distill.training.checkpoint import Checkpoint, flatten, restore
from distill.training.distributed import (
    any_process,
    gather,
    processes,
    share,
    share_buffers,
    share_of_rows,
    sum_over_processes,
)
from distill.training.optimisers import make_optimiser
from distill.training.schedule import learning_rate
from distill.training.waiting import ImageWait

CHECKPOINT_INTERVAL_S: Final = 300.0
CHECK_STEPS: Final = 20  # of a GPU, between two questions whose answer it has to be waited for
CLIP_NORM: Final = 1.0


@dataclass(frozen=True)
class TrainingData:
    """Everything a run learns from. Features are float32; the losses normalise them."""

    pixels: Pixels  # [images, 3, size, size] uint8
    targets: Tensor  # [images] indices into `text`
    teacher: Tensor  # [images, dim], or [images, views, dim] of the stored views
    text: Tensor  # [classes, dim]
    seen_pixels: Pixels  # held-out images of the same classes
    seen_targets: Tensor
    seen_text: Tensor
    captions: Tensor | None = None  # [images, dim], zeros where an image has none
    views: Tensor | None = None  # [images, views, 6]: parameters of the stored views
    rows: Tensor | None = None  # indices of the images to train on; None: all

    @property
    def images(self) -> int:
        """How many images an epoch has."""
        return len(self.pixels if self.rows is None else self.rows)

    def epoch_indices(self, generator: torch.Generator) -> Tensor:
        """Indices of the images of one epoch in random order."""
        order = torch.randperm(self.images, generator=generator)
        return order if self.rows is None else self.rows[order]

    def batches(self, indices: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The indices of each batch of `size` images, and the pixels of this process's share of it.

        Raises:
            UnreadableImages: an image was changed or deleted since the run began.
        """
        batches = torch.split(indices, size)
        return zip(
            batches,
            read_batches(self.pixels, (batch[share(len(batch))] for batch in batches)),
            strict=True,
        )

    def get_batch(
        self,
        batch: Tensor,
        pixels: Tensor,
        epoch: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """Views [share, 3, size, size] of the `pixels` of this process's share of the images
        `batch`, and the teacher's features of this share [share, dim].

        The views are new random ones, with features of the clean images; or stored ones, with the
        features of those views. Each epoch uses the next stored view of each image.
        """
        own = share(len(batch))
        pixels = to_device(pixels, device)
        if self.views is None:
            params = sample_views(len(batch), generator)
            views = apply_views(pixels, to_device(params[own], device))
            return views, take(self.teacher, batch[own], device)
        rows = batch[own]
        view = (rows + epoch) % self.views.shape[1]
        views = apply_views(pixels, to_device(self.views[rows, view], device))
        return views, take(self.teacher, (rows, view), device)

    def get_captions(self, batch: Tensor, device: torch.device) -> Tensor | None:
        """Features [share, dim] of the captions of this process's share of the images `batch`."""
        if self.captions is None:
            return None
        return take(self.captions, batch[share(len(batch))], device)

    def on(self, device: torch.device) -> "TrainingData":
        """The same data in the memory of a GPU, if it fits in half of what is free there."""
        if device.type != "cuda":
            return self
        names = ("pixels", "targets", "teacher", "captions")
        tensors = {name: getattr(self, name) for name in names}
        present = {name: each for name, each in tensors.items() if isinstance(each, Tensor)}
        size = sum(tensor.numel() * tensor.element_size() for tensor in present.values())
        if size > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in present.items()}
        return replace(self, **moved)


def take(values: Tensor, rows: Tensor | tuple[Tensor, ...], device: torch.device) -> Tensor:
    """`values[rows]` on `device`, of values that are there already or in main memory."""
    rows = rows if isinstance(rows, tuple) else (rows,)
    return to_device(values[tuple(to_device(row, values.device) for row in rows)], device)


@dataclass(frozen=True)
class Callbacks:
    """What `train` calls while it runs."""

    on_epoch: Callable[[Epoch], object] = lambda _: None
    on_step: Callable[[int, int], object] = lambda _done, _total: None  # steps done, all steps
    should_stop: Callable[[], bool] = lambda: False


@dataclass
class TrainState:
    """Everything that changes during training; a checkpoint stores it."""

    student: Student
    network: nn.Module  # the student, wrapped where processes share gradients
    objective: Objective
    balance: LossBalance
    optimiser: torch.optim.Optimizer
    accelerator: Accelerator
    text: Tensor  # [classes, dim] on the device
    batch_size: int  # over all processes
    epoch_steps: int
    total_steps: int
    epoch: int = 0  # the current one, from 0
    step: int = 0  # the next one of this epoch, from 0
    loss_sums: dict[str, Tensor] = field(default_factory=dict)  # of this epoch, on the device
    is_finite: Tensor | None = None  # whether all features since the last check were finite
    seconds: float = 0.0  # of this epoch
    image_wait: ImageWait = field(init=False)  # of this epoch
    epochs: list[Epoch] = field(default_factory=list)  # finished

    def __post_init__(self) -> None:
        self.image_wait = ImageWait(self.accelerator.device)

    @classmethod
    def create(cls, config: TrainConfig, student: Student, data: TrainingData) -> "TrainState":
        """The state before the first step; moves `student` to the device.

        Raises:
            DataError: there are fewer than two images per process, or too few to accumulate.
            UserError: no loss has a weight.
        """
        count = processes().num_processes
        size = min(config.batch_size, data.images // count) * count
        steps = data.images // max(size, 1) // config.accumulate * config.accumulate
        if size < 2 * count or not steps:
            raise DataError(
                f"there are {data.images} images to train on, too few for a step: add some to "
                "train/, or lower `accumulate` or the number of processes"
            )
        objective = make_objective(config)
        if not objective.enabled:
            raise UserError("every loss has the weight 0: give at least one of them a weight")
        accelerator = Accelerator(
            cpu=processes().device.type == "cpu", gradient_accumulation_steps=config.accumulate
        )
        student = student.to(accelerator.device)
        network = accelerator.prepare_model(student)
        balance = LossBalance(objective).to(accelerator.device)
        return cls(
            student=student,
            network=network,
            objective=objective,
            balance=balance,
            optimiser=make_optimiser(config, nn.ModuleList([student, balance])),
            accelerator=accelerator,
            text=data.text.to(accelerator.device),
            batch_size=size,
            epoch_steps=steps,
            total_steps=steps * config.epochs,
        )

    @property
    def steps_done(self) -> int:
        """Steps since the beginning of the run."""
        return self.epoch * self.epoch_steps + self.step

    def save(self, checkpoint: Checkpoint | None) -> None:
        """Write `checkpoint`, if there is one and this is the main process."""
        if checkpoint is None or not processes().is_main_process:
            return
        counters = {
            "batch": self.batch_size,
            "epoch": self.epoch,
            "step": self.step,
            "sums": {name: total.item() for name, total in self.loss_sums.items()},
            "seconds": self.seconds,
            "image_wait": self.image_wait.seconds(),
            "epochs": [epoch.model_dump(mode="json") for epoch in self.epochs],
        }
        checkpoint.save(flatten(self._parameters(), self.optimiser), counters)

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint`, if its file exists.

        Raises:
            CheckpointError: it is damaged, of another run or of another number of processes.
        """
        loaded = checkpoint.load()
        if loaded is None:
            return
        tensors, counters = loaded
        if counters["batch"] != self.batch_size:
            raise CheckpointError(
                f"the checkpoint {checkpoint.path} is of batches of {counters['batch']} images over"
                f" all processes, not of {self.batch_size}: resume with as many processes as it "
                "began with"
            )
        restore(self._parameters(), self.optimiser, tensors)
        self.epoch, self.step = counters["epoch"], counters["step"]
        self.loss_sums = {name: self._sum(value) for name, value in counters["sums"].items()}
        self.seconds = counters["seconds"]
        self.image_wait.add(counters["image_wait"])
        self.epochs = [Epoch.model_validate(epoch) for epoch in counters["epochs"]]

    def add_losses(self, losses: Mapping[str, Tensor]) -> None:
        """Add the losses of a step to the sums of the epoch."""
        for name, value in losses.items():
            total = self.loss_sums.setdefault(name, self._sum(0.0))
            total += value.detach().to(total.dtype)

    def _sum(self, value: float) -> Tensor:
        device = self.accelerator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        return torch.tensor(value, dtype=dtype, device=device)

    @property
    def may_wait(self) -> bool:
        """Whether this step may wait for the device: each one on a CPU, few on a GPU."""
        on_cpu = self.accelerator.device.type == "cpu"
        return on_cpu or self.step % CHECK_STEPS == 0 or self.step == self.epoch_steps

    def finish_epoch(self, epoch: Epoch) -> None:
        """Record the finished `epoch` and start the next one."""
        self.epochs.append(epoch)
        self.epoch, self.step, self.loss_sums, self.seconds = self.epoch + 1, 0, {}, 0.0
        self.image_wait = ImageWait(self.accelerator.device)

    def _parameters(self) -> nn.ModuleList:
        return nn.ModuleList([self.student, self.balance])


def train(
    config: TrainConfig,
    student: Student,
    data: TrainingData,
    *,
    callbacks: Callbacks,
    checkpoint: Checkpoint | None = None,
    resume: bool = True,
) -> tuple[Epoch, ...]:
    """Train `student` in place and return its epochs. Seeds torch's global generator at each step.

    Every process of a distributed run calls this; the main process writes the checkpoints.

    Raises:
        Interrupted: `should_stop` returned true in one of the processes; the checkpoint is written.
        CheckpointError: the checkpoint to resume from is damaged, of another run or of another
            number of processes.
        DataError: there are fewer than two images per process, or too few to accumulate; or an
            image of streamed pixels cannot be read.
        UserError: no loss has a weight, or the training diverged.
    """
    state = TrainState.create(config, student, data)
    data = data.on(state.accelerator.device)
    if checkpoint and resume:
        state.load(checkpoint)
    saved = time.monotonic()
    while state.epoch < config.epochs:
        indices = data.epoch_indices(_generator(config.seed, state.epoch))
        rest = indices[state.step * state.batch_size : state.epoch_steps * state.batch_size]
        batches = data.batches(rest, state.batch_size)
        state.network.train()
        while state.step < state.epoch_steps:
            train_step(state, config, data, batches)
            callbacks.on_step(state.steps_done, state.total_steps)
            if not state.accelerator.sync_gradients:
                continue  # gradients are not stored in checkpoints
            if not state.may_wait:
                continue
            if any_process(callbacks.should_stop()):
                state.save(checkpoint)
                processes().wait_for_everyone()  # the others' exit would end a main still writing
                raise Interrupted
            if time.monotonic() - saved > CHECKPOINT_INTERVAL_S:
                state.save(checkpoint)
                saved = time.monotonic()
        state.finish_epoch(evaluate_epoch(state, config, data))
        state.save(checkpoint)
        saved = time.monotonic()
        callbacks.on_epoch(state.epochs[-1])
    return tuple(state.epochs)


def train_step(
    state: TrainState,
    config: TrainConfig,
    data: TrainingData,
    batches: Iterator[tuple[Tensor, Tensor]],
) -> None:
    """Learn from the next of the `batches` of this epoch."""
    began = time.monotonic()
    device = state.accelerator.device
    with state.image_wait.measure():
        batch, pixels = next(batches)
    generator = _generator(config.seed, state.epoch, state.step)
    # For dropout, which must differ between the shares.
    torch.manual_seed(generator.initial_seed() + processes().process_index)
    images, teacher = data.get_batch(batch, pixels, state.epoch, generator, device)
    captions = data.get_captions(batch, device)
    rate = learning_rate(config, state.steps_done, state.epoch_steps, state.total_steps)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    with state.accelerator.accumulate(state.network):
        with training_precision(device, config.precision, cpu_kernels=config.cpu_kernels):
            output = state.network(images)
        features = Features(
            student=gather(output.float()),
            teacher=gather(teacher),
            text=state.text,
            targets=take(data.targets, batch, device),
            captions=None if captions is None else gather(captions),
        )
        finite = features.student.detach().isfinite().all()
        state.is_finite = finite if state.is_finite is None else state.is_finite & finite
        if device.type == "cpu":
            check_finite(state, config)  # before the optimiser steps
        losses = compute_losses(features, state.objective)
        loss = state.balance(losses)
        state.accelerator.backward(loss)
    if state.accelerator.sync_gradients:
        nn.utils.clip_grad_norm_(state.student.parameters(), CLIP_NORM)
        state.optimiser.step()
        state.optimiser.zero_grad(set_to_none=True)
    state.add_losses({**losses, "loss": loss})
    state.step += 1
    if state.may_wait:
        check_finite(state, config)
    state.seconds += time.monotonic() - began


def evaluate_epoch(state: TrainState, config: TrainConfig, data: TrainingData) -> Epoch:
    """The finished epoch: mean losses, and the accuracy on held-out images of the seen classes."""
    steps = state.epoch_steps
    student = state.student
    began = time.monotonic()
    if state.accelerator.device.type != "cpu":
        torch.accelerator.synchronize(state.accelerator.device)  # finish all steps
    state.seconds += time.monotonic() - began
    share_buffers(student)
    rows = share_of_rows(len(data.seen_targets), EVALUATION_BATCH)
    features = student.encode(data.seen_pixels, student.single_view, rows)
    # All processes raise it, so that none waits for another that has ended.
    state.is_finite = torch.tensor(not any_process(not bool(features.isfinite().all())))
    check_finite(state, config)
    hits = int((predict(features, data.seen_text) == data.seen_targets[rows]).sum())
    means = {name: value.item() / steps for name, value in state.loss_sums.items()}
    last_step = (state.epoch + 1) * steps - 1
    return Epoch(
        epoch=state.epoch + 1,
        learning_rate=learning_rate(config, last_step, steps, state.total_steps),
        loss=means.pop("loss"),
        losses=means,
        weights=state.balance.weights() if config.adaptive_weights else {},
        seen_top1=100 * (sum_over_processes(hits) / len(data.seen_targets)),
        seconds=state.seconds,
        image_wait=min(1.0, state.image_wait.seconds() / max(state.seconds, 1e-9)),
        images_per_second=steps * state.batch_size / max(state.seconds, 1e-9),
    )


def make_objective(config: TrainConfig) -> Objective:
    """The objective that `config` describes."""
    return Objective(
        weights=dict(config.losses),
        temperature=config.temperature,
        vlprox_k=config.vlprox_k,
        vlprox_filter=config.vlprox_filter,
        adaptive_weights=config.adaptive_weights,
    )


def check_finite(state: TrainState, config: TrainConfig) -> None:
    """Wait for the device, and raise UserError if a feature since the last check was not finite."""
    finite, state.is_finite = state.is_finite, None
    if finite is not None and not bool(finite):
        raise UserError(
            "the training diverged (the student's features are NaN or infinite): lower "
            f"learning_rate from {config.learning_rate:g} and start over"
        )


def _generator(*counters: int) -> torch.Generator:
    seed = 0
    for counter in counters:
        seed = (seed * 1_000_003 + counter + 1) % 2**63
    return torch.Generator().manual_seed(seed)
