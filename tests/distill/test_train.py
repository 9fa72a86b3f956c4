import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from contract import LossWeights, TrainConfig
from distill.checkpoint import Checkpoint
from distill.errors import CheckpointError, UserError
from distill.student import build_student
from distill.train import Interrupted, TrainingData, train

CONFIG = TrainConfig(
    data="unused",
    teacher="unused",
    student="test_resnet",
    image_size=32,
    epochs=3,
    batch_size=32,
    learning_rate=3e-3,
)
DIM, CLASSES = 16, 4


def make_data(images: int = 128) -> TrainingData:
    """Classes are colours; the teacher's features lie near its texts."""
    rng = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(CLASSES, DIM, generator=rng), dim=1)
    targets = torch.arange(images) % CLASSES
    noise = torch.randn(images, DIM, generator=rng) * 0.1
    teacher = torch.nn.functional.normalize(text[targets] + noise, dim=1)
    colours = torch.tensor([[220, 30, 30], [30, 220, 30], [30, 30, 220], [220, 220, 30]])
    shade = torch.randint(-25, 25, (images, 3, 32, 32), generator=rng)
    pixels = (colours[targets][:, :, None, None] + shade).to(torch.uint8)
    return TrainingData(pixels, targets, teacher, text, pixels[:40], targets[:40], text)


def run(tmp_path, config=CONFIG, *, resume=False, stop=lambda: False, on_step=lambda *_: None):
    torch.manual_seed(config.seed)
    student = build_student(config.student, DIM, image_size=config.image_size)
    epochs = train(
        config,
        student,
        make_data(),
        checkpoint=Checkpoint(tmp_path / "checkpoint.safetensors", config, "hash"),
        resume=resume,
        on_epoch=lambda _: None,
        on_step=on_step,
        should_stop=stop,
    )
    return student, epochs


def numbers(epochs):
    return [(e.epoch, e.loss, e.losses, e.seen_top1, e.learning_rate) for e in epochs]


def test_a_student_learns_what_the_teacher_shows(tmp_path):
    _, epochs = run(tmp_path, CONFIG.model_copy(update={"epochs": 6}))
    assert epochs[-1].loss < 0.7 * epochs[0].loss
    assert epochs[-1].seen_top1 > 60  # chance is 25
    assert set(epochs[0].losses) == {"cls", "mse", "im_cst", "vlprox"}


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(tmp_path):
    first = numbers(run(tmp_path / "a")[1])
    assert numbers(run(tmp_path / "b")[1]) == first
    assert numbers(run(tmp_path / "c", CONFIG.model_copy(update={"seed": 1}))[1]) != first


def test_a_loss_without_weight_is_left_out(tmp_path):
    config = CONFIG.model_copy(update={"losses": LossWeights(mse=0, im_cst=0), "epochs": 1})
    (epoch,) = run(tmp_path, config)[1]
    assert set(epoch.losses) == {"cls", "vlprox"}
    assert epoch.loss == pytest.approx(sum(epoch.losses.values()), rel=1e-4)


def test_a_run_stopped_on_request_goes_on_mid_epoch_to_the_same_numbers(tmp_path):
    whole, expected = run(tmp_path / "whole")
    steps = 0

    def count(*_):
        nonlocal steps
        steps += 1

    with pytest.raises(Interrupted):
        run(tmp_path / "broken", stop=lambda: steps == 6, on_step=count)
    student, epochs = run(tmp_path / "broken", resume=True)
    assert numbers(epochs) == numbers(expected)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, student.state_dict()[name]), name


SCRIPT = """
import json, sys, time
from pathlib import Path
from tests.distill.test_train import CONFIG, numbers, run
def on_step(step, total):
    print(json.dumps(step), flush=True)
    time.sleep(0.02)
_, epochs = run(Path(sys.argv[1]), resume=True, on_step=on_step)
print(json.dumps(numbers(epochs)), flush=True)
"""


def test_a_killed_run_resumes_where_it_stopped(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if json.loads(line) == 6:  # in the second of three epochs
            break
    os.kill(child.pid, signal.SIGKILL)
    child.stdout.close()
    child.wait()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = again.stdout.splitlines()
    assert json.loads(lines[0]) == 5  # the first epoch was not repeated
    expected = json.loads(json.dumps(numbers(run(tmp_path / "whole")[1])))
    assert json.loads(lines[-1]) == expected


def test_a_diverged_run_says_what_to_do(tmp_path):
    config = CONFIG.model_copy(update={"learning_rate": 1e30, "warmup_epochs": 0.0})
    with pytest.raises(UserError, match="diverged .* lower learning_rate"):
        run(tmp_path, config)


def test_a_checkpoint_cut_off_mid_file_is_named(tmp_path):
    run(tmp_path, CONFIG.model_copy(update={"epochs": 1}))
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="cut off or damaged: delete it to start over"):
        run(tmp_path, CONFIG.model_copy(update={"epochs": 1}), resume=True)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    run(tmp_path, CONFIG.model_copy(update={"epochs": 1}))
    with pytest.raises(CheckpointError, match="another configuration or release"):
        run(tmp_path, CONFIG.model_copy(update={"learning_rate": 0.5}), resume=True)


def test_a_full_disk_keeps_the_old_checkpoint(small_disk):
    checkpoint = Checkpoint(small_disk / "checkpoint.safetensors", CONFIG, "hash")
    checkpoint.save({"x": torch.ones(10)}, {"step": 1})
    with pytest.raises(CheckpointError, match="No space left on device.*free some space"):
        checkpoint.save({"x": torch.ones(10**6)}, {"step": 2})
    assert checkpoint.load()[1] == {"step": 1}
    assert [path.name for path in small_disk.iterdir()] == ["checkpoint.safetensors"]
