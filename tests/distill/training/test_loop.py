"""The training loop: what it learns, what it tells, and how it stops and goes on."""

import dataclasses
import math
import signal
import time
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from contract import LossWeights, TrainConfig
from distill.data.augment import apply_views, sample_views
from distill.errors import DataError, Interrupted, UserError
from distill.method import losses
from distill.models.student import build_student
from distill.training import loop as module
from distill.training.checkpoint import Checkpoint
from distill.training.loop import Callbacks, TrainingData, train

DIM, CLASSES, SIZE = 16, 4, 32


def make_data(images: int = 32, seed: int = 0) -> TrainingData:
    """Plain-coloured images; the teacher's feature of an image is its class's text, with noise."""
    generator = torch.Generator().manual_seed(seed)
    random = partial(torch.rand, generator=generator)
    colours = random(CLASSES, 3, 1, 1) * 255
    text = normalize(torch.randn(CLASSES, DIM, generator=generator), dim=1)

    def split(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        targets = torch.arange(count) % CLASSES
        noise = random(count, 3, SIZE, SIZE) * 40 - 20
        return (colours[targets] + noise).clamp(0, 255).to(torch.uint8), targets

    pixels, targets = split(images)
    noise = torch.randn(images, DIM, generator=generator) * 0.05
    seen_pixels, seen_targets = split(16)
    return TrainingData(
        pixels=pixels,
        targets=targets,
        teacher=normalize(text[targets] + noise, dim=1),
        text=text,
        seen_pixels=seen_pixels,
        seen_targets=seen_targets,
        seen_text=text,
    )


def make_config(**changes) -> TrainConfig:
    values = {
        "data": "/images",
        "teacher": "teacher",
        "student": "test_resnet",
        "image_size": SIZE,
        "epochs": 2,
        "batch_size": 8,
        "warmup_epochs": 0.5,
    }
    return TrainConfig(**{**values, **changes})


def make_student(config: TrainConfig):
    torch.manual_seed(config.seed)
    return build_student(config.student, DIM, image_size=config.image_size)


def run(config: TrainConfig, data: TrainingData | None = None, student=None, **options):
    names = ("on_epoch", "on_step", "should_stop")
    callbacks = Callbacks(**{name: options.pop(name) for name in names if name in options})
    student, data = student or make_student(config), data or make_data()
    return train(config, student, data, callbacks=callbacks, **options)


def outcome(epochs) -> list[dict]:
    """The epochs without what the clock decides."""
    return [
        epoch.model_dump(exclude={"seconds", "image_wait", "images_per_second"}) for epoch in epochs
    ]


def stop_after(steps: int):
    """A `should_stop` that comes true after so many steps."""
    asked = iter(range(1, 10_000))
    return lambda: next(asked) >= steps


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "checkpoint.safetensors", make_config(), "abc")


@pytest.mark.parametrize("student", ["test_resnet", "test_vit"])
def test_a_student_learns_to_tell_seen_classes_apart(student):
    epochs = run(make_config(student=student, epochs=10, learning_rate=5e-3))

    assert epochs[-1].seen_top1 == 100
    assert epochs[-1].loss < epochs[0].loss / 2


def test_each_epoch_is_told_once_and_in_order():
    told, steps = [], []
    epochs = run(
        make_config(epochs=3),
        on_epoch=told.append,
        on_step=lambda step, total: steps.append((step, total)),
    )

    assert tuple(told) == epochs
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
    assert steps == [(step, 12) for step in range(1, 13)]
    for epoch in epochs:
        assert epoch.losses.keys() == {"cls", "mse", "im_cst", "vlprox"}
        assert epoch.images_per_second == pytest.approx(32 / epoch.seconds)


class OnASlowDisk:
    """Pixels whose batches come late."""

    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def batches(self, batches):
        for rows in batches:
            time.sleep(0.2)
            yield self.pixels[rows]


def test_an_epoch_has_the_share_of_time_that_it_waited_for_images():
    data = make_data()
    slow = dataclasses.replace(data, pixels=OnASlowDisk(data.pixels))
    for fast_epoch, slow_epoch in zip(
        run(make_config(epochs=2), data), run(make_config(epochs=2), slow), strict=True
    ):
        assert 0 <= fast_epoch.image_wait < slow_epoch.image_wait <= 1
        assert slow_epoch.image_wait * slow_epoch.seconds >= 4 * 0.2  # four steps


def test_the_loss_is_the_weighted_sum_of_the_losses_and_those_of_weight_0_are_left_out():
    weights = LossWeights(cls=0.5, mse=2, im_cst=0, vlprox=3)
    for epoch in run(make_config(losses=weights)):
        parts = epoch.losses
        assert parts.keys() == {"cls", "mse", "vlprox"}
        assert epoch.loss == pytest.approx(
            0.5 * parts["cls"] + 2 * parts["mse"] + 3 * parts["vlprox"], rel=1e-5
        )


@pytest.mark.parametrize("trusted", [True, False])
def test_the_losses_of_the_first_step_are_those_of_the_formulas(trusted):
    data = make_data(8)
    config = make_config(
        epochs=1, vlprox_k=3, vlprox_filter=trusted, temperature=0.1, precision="float32"
    )
    # One batch holds all images, so that their order changes no mean but which view each gets.
    seen = []
    student = make_student(config)
    student.register_forward_hook(lambda _, __, output: seen.append(output.detach().clone()))
    (epoch,) = run(config, data, student)
    order = torch.randperm(8, generator=module._generator(0, 0))
    features, teacher, targets = seen[0], data.teacher[order], data.targets[order]

    expected = {
        "cls": losses.l_cls(features, data.text, targets, temperature=0.1),
        "mse": losses.l_mse(features, teacher),
        "im_cst": losses.l_im_cst(features, teacher, temperature=0.1),
        "vlprox": losses.l_vlprox(
            features, teacher, data.text, targets if trusted else None, k=3, temperature=0.1
        ),
    }
    assert epoch.losses == {name: value.item() for name, value in expected.items()}


def test_the_learning_rate_rises_linearly_then_falls_as_half_a_cosine(monkeypatch):
    rates = []
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self, *_: rates.append([group["lr"] for group in self.param_groups]),
    )
    # 8 epochs of 4 steps, 2 epochs of warm-up.
    run(make_config(epochs=8, warmup_epochs=2, learning_rate=0.8, optimiser="sgd"))

    assert all(len(set(each)) == 1 for each in rates)
    rates = [each[0] for each in rates]
    assert rates[:8] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert rates[8] == pytest.approx(0.8)
    assert rates[20] == pytest.approx(0.4)  # half way down
    assert rates[8:] == sorted(rates[8:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_biases_and_norms_are_not_decayed_and_gradients_are_clipped(monkeypatch):
    steps = []

    def step(self, *_):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norm = torch.stack([g.norm() for g in gradients if g is not None]).norm().item()
        decayed = [
            (group["weight_decay"], p.ndim) for group in self.param_groups for p in group["params"]
        ]
        steps.append((norm, decayed))

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    student = make_student(make_config())
    config = make_config(losses=LossWeights(cls=1000), weight_decay=0.3, optimiser="sgd")
    run(config, student=student)

    assert len(steps) == 8

    for norm, decayed in steps:
        assert norm == pytest.approx(1, rel=1e-3)
        assert len(decayed) == len(list(student.parameters()))
        assert {decay for decay, ndim in decayed if ndim > 1} == {0.3}
        assert {decay for decay, ndim in decayed if ndim <= 1} == {0.0}


def test_every_image_is_seen_once_an_epoch_in_another_order_and_view_each_time(monkeypatch):
    seen = []

    def record_views(pixels, params):
        seen.append((pixels, apply_views(pixels, params)))
        return seen[-1][1]

    monkeypatch.setattr(module, "apply_views", record_views)
    data = make_data()
    run(make_config(epochs=2), data)
    first, second = (torch.cat([pixels for pixels, _ in seen[i : i + 4]]) for i in (0, 4))

    def rows(pixels):
        return sorted(image.numpy().tobytes() for image in pixels)

    assert rows(first) == rows(second) == rows(data.pixels)
    assert not first.equal(second)
    views = [view.numpy().tobytes() for _, batch in seen for view in batch]
    assert len(set(views)) == len(views)


def test_one_seed_gives_one_outcome_and_another_seed_another():
    first, again = (outcome(run(make_config())) for _ in range(2))

    assert first == again
    assert outcome(run(make_config(seed=1))) != first


def test_a_run_asked_to_stop_keeps_a_checkpoint_and_ends_as_if_unbroken(checkpoint):
    config = checkpoint.config
    told = []
    unbroken_student, student = make_student(config), make_student(config)
    unbroken = run(config, student=unbroken_student)

    for steps in (1, 3, 2):  # within an epoch, at its last step, within the second
        with pytest.raises(Interrupted):
            run(config, checkpoint=checkpoint, should_stop=stop_after(steps), on_epoch=told.append)
    assert checkpoint.load()[1]["epoch"] == 1
    torch.manual_seed(99)
    epochs = run(config, student=student, checkpoint=checkpoint, on_epoch=told.append)

    assert outcome(epochs) == outcome(unbroken) == outcome(told)
    for name, value in unbroken_student.state_dict().items():
        assert student.state_dict()[name].equal(value), name


def test_a_student_with_dropout_also_goes_on_as_if_unbroken(checkpoint):
    config = checkpoint.config

    def with_dropout():
        student = make_student(config)
        student.backbone = nn.Sequential(student.backbone, nn.Dropout(0.5))
        return student

    unbroken = run(config, student=with_dropout())
    with pytest.raises(Interrupted):
        run(config, student=with_dropout(), checkpoint=checkpoint, should_stop=stop_after(2))
    torch.manual_seed(99)

    assert outcome(run(config, student=with_dropout(), checkpoint=checkpoint)) == outcome(unbroken)


def test_a_finished_run_resumed_gives_its_epochs_and_trains_no_more(checkpoint):
    config = checkpoint.config
    epochs = run(config, checkpoint=checkpoint)
    steps = []

    assert run(config, checkpoint=checkpoint, on_step=lambda *step: steps.append(step)) == epochs
    assert steps == []


def test_a_run_not_resumed_starts_over(checkpoint):
    config = checkpoint.config
    epochs = run(config, checkpoint=checkpoint)
    told = []

    again = run(config, checkpoint=checkpoint, resume=False, on_epoch=told.append)
    assert outcome(told) == outcome(again) == outcome(epochs)


def test_checkpoints_are_also_written_within_long_epochs(checkpoint, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_INTERVAL_S", 0.0)
    places = []

    def look(step, _):
        if checkpoint.path.exists():
            _, counters = checkpoint.load()
            places.append((step, counters["epoch"], counters["step"]))

    run(checkpoint.config, checkpoint=checkpoint, on_step=look)
    assert places == [
        *((step, 0, step - 1) for step in (2, 3, 4)),
        *((step, 1, step - 5) for step in (5, 6, 7, 8)),
    ]


KILLED = """
import sys, time
from pathlib import Path
import torch
from distill.training import loop as module
from distill.training.checkpoint import Checkpoint
from tests.distill.training.test_loop import make_config, run
torch.set_num_threads(1)
module.CHECKPOINT_INTERVAL_S = 0.0
config = make_config()

def on_step(step, total):
    print(step, flush=True)
    if step == 7:
        time.sleep(600)  # wait to be killed, if that has not happened yet

run(config, checkpoint=Checkpoint(Path(sys.argv[1]), config, "abc"), on_step=on_step)
"""


def test_a_killed_run_resumes_where_it_stopped_and_ends_at_the_same_numbers(
    checkpoint, fork_server, tmp_path
):
    (tmp_path / "killed.py").write_text(KILLED)
    process = fork_server.start(str(tmp_path / "killed.py"), str(checkpoint.path))
    for line in process.stdout:
        if line == "6\n":  # of 8 steps: within the second epoch
            break
    process.send_signal(signal.SIGKILL)
    status, said = process.wait()
    assert status == -signal.SIGKILL, said

    config = checkpoint.config
    student, unbroken = make_student(config), make_student(config)
    steps, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = run(config, student=unbroken)
        epochs = run(
            config, student=student, checkpoint=checkpoint, on_step=lambda *step: steps.append(step)
        )
    finally:
        torch.set_num_threads(threads)

    assert steps[0] in ((6, 8), (7, 8))  # the first after the last checkpoint
    assert outcome(epochs) == outcome(expected)
    for name, value in unbroken.state_dict().items():
        assert student.state_dict()[name].equal(value), name


def test_a_diverged_training_is_told_in_one_line():
    student = make_student(make_config())
    nn.init.constant_(student.projection.bias, math.nan)

    with pytest.raises(UserError, match="the training diverged .* lower learning_rate") as error:
        run(make_config(learning_rate=0.5), student=student)
    assert "0.5" in str(error.value) and "\n" not in str(error.value)


def test_a_training_that_diverges_in_its_last_step_keeps_no_checkpoint_of_it(checkpoint):
    config = make_config(epochs=1, batch_size=32, learning_rate=1e38, optimiser="adamw")

    with pytest.raises(UserError, match="the training diverged"):
        run(config, checkpoint=checkpoint)
    assert checkpoint.load() is None


def test_accumulated_batches_make_the_step_of_one_batch():
    data = make_data()
    one_view = sample_views(len(data.pixels), torch.Generator().manual_seed(0))[:, None]
    data = dataclasses.replace(data, views=one_view, teacher=data.teacher[:, None])
    # Losses that look at each image by itself, a network that does too, and one rate an epoch.
    changes = {
        "student": "test_vit",
        "losses": LossWeights(cls=1, mse=1, im_cst=0, vlprox=0),
        "optimiser": "sgd",
        "learning_rate": 0.01,
        "schedule": "steps",
        "warmup_epochs": 0,
        "epochs": 3,
        "precision": "float32",
    }
    whole, parts = (make_student(make_config(**changes)) for _ in range(2))
    expected = run(make_config(batch_size=16, **changes), data, student=whole)
    config = make_config(batch_size=4, accumulate=4, **changes)
    stops = []
    found = run(config, data, student=parts, should_stop=lambda: bool(stops.append(1)))

    assert len(stops) == 6, "a run stops only between steps"
    assert [each.loss for each in found] == pytest.approx([e.loss for e in expected], rel=1e-4)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=1e-6, rtol=1e-4)
    with pytest.raises(DataError, match="lower `accumulate`"):
        run(make_config(batch_size=16, accumulate=3), data)


def test_a_run_in_which_no_loss_counts_is_refused():
    nothing = LossWeights(cls=0, mse=0, im_cst=0, vlprox=0)
    with pytest.raises(UserError, match="every loss has the weight 0"):
        run(make_config(losses=nothing))


def test_a_single_image_is_too_little_to_train_on():
    with pytest.raises(DataError, match="1 images to train on, too few"):
        run(make_config(), make_data(1))


def test_fewer_images_than_a_batch_make_one_batch():
    epochs = run(make_config(batch_size=128), make_data(5))
    assert [round(epoch.images_per_second * epoch.seconds) for epoch in epochs] == [5, 5]


def test_each_epoch_sees_the_next_stored_view_with_the_teachers_feature_of_it():
    data = make_data(8)
    generator = torch.Generator().manual_seed(0)
    views = torch.stack([sample_views(8, generator) for _ in range(3)], dim=1)
    features = torch.randn(8, 3, DIM, generator=generator)
    data = dataclasses.replace(data, views=views, teacher=features)
    batch = torch.tensor([5, 2, 7])

    seen = []
    for epoch in range(3):
        images, teacher = data.get_batch(
            batch, data.pixels[batch], epoch, generator, torch.device("cpu")
        )
        chosen = [
            next(view for view in range(3) if teacher[row].equal(features[image, view]))
            for row, image in enumerate(batch.tolist())
        ]
        assert images.equal(apply_views(data.pixels[batch], views[batch, chosen]))
        seen.append(chosen)
    assert all(set(of_one) == {0, 1, 2} for of_one in zip(*seen, strict=True))
    epochs = run(make_config(epochs=1), data)
    assert outcome(epochs) == outcome(run(make_config(epochs=1), data))


def test_learned_weights_are_told_each_epoch_and_resumed_to_the_bit(tmp_path):
    config = make_config(adaptive_weights=True)
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", config, "abc")
    unbroken = run(config)
    with pytest.raises(Interrupted):
        run(config, checkpoint=checkpoint, should_stop=stop_after(6))

    assert outcome(run(config, checkpoint=checkpoint)) == outcome(unbroken)
    first, last = (epoch.weights for epoch in unbroken)
    assert first.keys() == unbroken[0].losses.keys() and first != last
    assert all(not epoch.weights for epoch in run(make_config()))


@pytest.mark.parametrize("schedule", ["steps", "one-cycle"])
def test_a_run_with_momentum_also_goes_on_as_if_unbroken(tmp_path, schedule):
    config = make_config(optimiser="sgd", schedule=schedule, learning_rate=0.05)
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", config, "abc")
    unbroken = run(config)
    with pytest.raises(Interrupted):
        run(config, checkpoint=checkpoint, should_stop=stop_after(5))

    assert outcome(run(config, checkpoint=checkpoint)) == outcome(unbroken)
