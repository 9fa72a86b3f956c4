"""SIGTERM before the first step ends a training at once; what is encoded by then is kept."""

import json
import signal
import time

import pytest

pytest.importorskip("torch")

from distill.data.files.row_shards import SHARD_ROWS
from distill.data.pixels import PROGRESS_IMAGES
from distill.training.outcome import INTERRUPTED
from tests.distill.plain_images import write_boxes, write_images

IMAGES = 4 * SHARD_ROWS + 100  # of the training split
LARGE_IMAGES = 300


def read_until(running, title):
    """The output of a process up to the first event of the phase `title`."""
    told = ""
    for line in running.stdout:
        told += line
        if f'"{title}"' in line:
            break
    return told


@pytest.fixture
def command(colour_teacher, colours, tmp_path):
    """The arguments of Python for a `distill train` of the images in `tmp_path`/images."""
    config = {
        "data": str(tmp_path / "images"),
        "teacher": colour_teacher,
        "student": "test_resnet",
        "image_size": 32,
        "epochs": 1,
        "export": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "release.json").write_text(colours.model_dump_json())
    words = ["-m", "distill", "train", "--events", "--config", tmp_path / "config.json"]
    words += ["--release", tmp_path / "release.json", "--out", tmp_path / "run"]
    return [*map(str, words), "--cache", str(tmp_path / "cache")]


def steps(events: str, phase: str) -> list[int]:
    """The progress of `phase` in the JSON lines among `events`."""
    lines = [json.loads(line) for line in events.splitlines() if line.startswith("{")]
    found = [line["data"] for line in lines if line["kind"] == "progress"]
    return [data["step"] for data in found if data["phase"] == phase]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stop_while_features_are_encoded_keeps_finished_shards(
    fork_server, command, tmp_path, processes
):
    write_images(tmp_path / "images", IMAGES, 8)
    start = fork_server.start_two if processes == 2 else lambda *words: [fork_server.start(*words)]
    running = start(*command)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "cache").glob("features-train-*/*.safetensors")):
        assert time.monotonic() < deadline, "no shard was written"
        time.sleep(0.002)
    running[0].send_signal(signal.SIGTERM)
    ends = [process.wait() for process in running]
    assert [status for status, _ in ends] == [INTERRUPTED] * processes, ends
    said = "".join(rest for _, rest in ends)
    stopped = (
        "stopped; finished shards of teacher features are kept; continue with the same command"
    )
    assert said.count(stopped) == 1 and "Traceback" not in said, said
    shards = list((tmp_path / "cache").glob("features-train-*/*.safetensors"))
    assert 1 <= len(shards) <= 4

    again = fork_server.start(*command, "--resume")
    told = read_until(again, "Teacher features, train")
    again.send_signal(signal.SIGKILL)
    again.wait()
    (first,) = steps(told, "Teacher features, train")
    assert SHARD_ROWS * len(shards) < first < SHARD_ROWS * (len(shards) + 1)


def test_a_stop_while_boxes_are_unpacked_keeps_the_crops(fork_server, command, tmp_path):
    write_images(tmp_path / "images", LARGE_IMAGES, 1500)
    write_boxes(tmp_path / "images" / "train", tmp_path / "images" / "boxes.json", 1500)
    config = json.loads((tmp_path / "config.json").read_text())
    config["data"] = str(tmp_path / "images" / "boxes.json")
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = 0
    for words in (command, [*command, "--resume"]):
        running = fork_server.start(*words)
        told = read_until(running, "Unpacking images")
        running.send_signal(signal.SIGTERM)
        status, rest = running.wait()
        assert status == INTERRUPTED, rest
        assert "stopped; unpacked images are kept; continue with the same command" in rest
        shown = steps(told + rest, "Unpacking images")
        assert shown[0] == done + 1
        (index,) = (tmp_path / "cache" / "sources").glob("*.interrupted/index.jsonl")
        done = len(index.read_text().splitlines())
        assert shown[-1] <= done < LARGE_IMAGES


def test_a_stop_while_pixels_are_decoded_leaves_nothing_half_written(
    fork_server, command, tmp_path
):
    write_images(tmp_path / "images", LARGE_IMAGES, 1500)
    running = fork_server.start(*command)
    told = read_until(running, "Pixels, train")
    running.send_signal(signal.SIGTERM)
    status, rest = running.wait()
    assert status == INTERRUPTED, rest
    assert "--resume" in rest
    assert steps(told + rest, "Pixels, train")[0] == PROGRESS_IMAGES
    assert max(steps(told + rest, "Pixels, train")) < LARGE_IMAGES
    assert not list((tmp_path / "cache").glob("pixels*"))
