"""Checkpoints: round trips, refused files, and what a kill leaves behind."""

import signal

import pytest
import torch
from torch import nn

from contract import TrainConfig
from distill.errors import CheckpointError
from distill.training.checkpoint import Checkpoint, flatten, restore
from distill.training.optimisers import make_optimiser

CONFIG = TrainConfig(data="/images", teacher="teacher")
COUNTERS = {"epoch": 3, "sums": {"loss": 0.1 + 0.2}, "epochs": [{"epoch": 1}]}


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "run" / "checkpoint.safetensors", CONFIG, "abc")


@pytest.fixture
def tensors():
    return {
        "weight": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "half": torch.randn(5).bfloat16(),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "none": torch.empty(0, 3),
    }


def test_what_was_saved_comes_back_bit_for_bit(checkpoint, tensors):
    checkpoint.save(tensors, COUNTERS)
    loaded, counters = checkpoint.load()

    assert counters == COUNTERS
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype
        assert loaded[name].equal(value), name


def test_a_folder_without_a_checkpoint_has_nothing_to_resume(checkpoint):
    assert checkpoint.load() is None


def test_a_second_save_replaces_the_first_and_leaves_no_other_file(checkpoint, tensors):
    checkpoint.save(tensors, {"step": 1})
    checkpoint.save(tensors, {"step": 2})

    assert checkpoint.load()[1] == {"step": 2}
    assert list(checkpoint.path.parent.iterdir()) == [checkpoint.path]


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.99])
def test_a_checkpoint_cut_off_is_refused_with_its_path_and_the_remedy(checkpoint, tensors, share):
    checkpoint.save(tensors, COUNTERS)
    content = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(content[: int(len(content) * share)])

    with pytest.raises(CheckpointError) as error:
        checkpoint.load()
    message = str(error.value)
    assert str(checkpoint.path) in message and "delete it to start over" in message
    assert "\n" not in message


def test_a_single_flipped_bit_anywhere_is_noticed(checkpoint):
    checkpoint.save({"weight": torch.arange(6.0)}, {"step": 1})
    content = checkpoint.path.read_bytes()
    for place in range(len(content)):
        checkpoint.path.write_bytes(
            content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        )
        with pytest.raises(CheckpointError):
            checkpoint.load()


def test_a_file_of_something_else_is_refused(checkpoint):
    checkpoint.path.parent.mkdir()
    torch.save({"weight": torch.ones(2)}, checkpoint.path)  # a pickle: it must not be opened

    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load()


@pytest.mark.parametrize(
    "other",
    [
        (CONFIG.model_copy(update={"learning_rate": 0.5}), "abc"),
        (CONFIG.model_copy(update={"seed": 1}), "abc"),
        (CONFIG, "abd"),
    ],
)
def test_a_checkpoint_of_another_configuration_or_release_is_refused(checkpoint, tensors, other):
    checkpoint.save(tensors, COUNTERS)

    with pytest.raises(CheckpointError, match="another configuration or release") as error:
        Checkpoint(checkpoint.path, *other).load()
    assert str(checkpoint.path) in str(error.value) and "--out" in str(error.value)


def test_a_run_can_be_resumed_after_its_data_was_moved(checkpoint, tensors):
    checkpoint.save(tensors, COUNTERS)
    moved = CONFIG.model_copy(update={"data": "/elsewhere"})

    assert Checkpoint(checkpoint.path, moved, "abc").load()[1] == COUNTERS


def test_a_full_disk_is_a_one_line_error_and_the_old_checkpoint_survives(small_disk):
    checkpoint = Checkpoint(small_disk / "checkpoint.safetensors", CONFIG, "abc")
    checkpoint.save({"weight": torch.ones(1000)}, {"step": 1})

    with pytest.raises(CheckpointError, match="free some space") as error:
        checkpoint.save({"weight": torch.ones(1_000_000)}, {"step": 2})
    assert str(checkpoint.path) in str(error.value) and "\n" not in str(error.value)
    assert checkpoint.load()[1] == {"step": 1}
    assert list(small_disk.iterdir()) == [checkpoint.path]


WRITER = """
import sys, torch
from pathlib import Path
from contract import TrainConfig
from distill.training.checkpoint import Checkpoint
checkpoint = Checkpoint(Path(sys.argv[1]), TrainConfig(data="/images", teacher="teacher"), "abc")
for step in range(1_000_000):
    checkpoint.save({"weight": torch.full((20_000,), float(step))}, {"step": step})
    print(step, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(checkpoint, fork_server, tmp_path):
    (tmp_path / "writer.py").write_text(WRITER)
    process = fork_server.start(str(tmp_path / "writer.py"), str(checkpoint.path))
    for _ in range(5):
        done = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    done = max([done, *map(int, process.wait()[1].split())])

    tensors, counters = checkpoint.load()
    assert done <= counters["step"] <= done + 1
    assert (tensors["weight"] == counters["step"]).all()


@pytest.mark.parametrize("optimiser", ["adamw", "muon", "sgd"])
def test_a_model_and_its_optimiser_go_on_as_if_they_had_never_stopped(optimiser):
    config = TrainConfig(data="d", teacher="t", optimiser=optimiser, learning_rate=1e-3)

    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 2))
        model = model.to(memory_format=torch.channels_last)
        return model, make_optimiser(config, model)

    def learn(model, optimiser, steps):
        for step in steps:
            images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(step))
            optimiser.zero_grad()
            model(images).square().sum().backward()
            optimiser.step()

    model, optimiser = make()
    learn(model, optimiser, range(3))
    kept = {  # in the order of memory in which files hold them
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in flatten(model, optimiser).items()
    }
    learn(model, optimiser, range(3, 6))

    again, optimiser_again = make()
    restore(again, optimiser_again, kept)
    learn(again, optimiser_again, range(3, 6))

    expected, found = flatten(model, optimiser), flatten(again, optimiser_again)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].equal(value), name
        assert not kept[name].equal(value), "nothing was learned meanwhile"
