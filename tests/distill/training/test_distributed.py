"""Several processes train together what one would train from the whole batch."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from contract import Report

TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ALONE = [sys.executable]


@pytest.fixture
def start(colour_images, colour_teacher, colours, tmp_path):
    """A function that starts `distill train` on its own or by torchrun; the process."""
    (tmp_path / "release.json").write_text(colours.model_dump_json())

    def start(launcher, out, *more, **changes):
        config = {
            "data": str(colour_images),
            "teacher": colour_teacher,
            "student": "test_vit",  # without batch norm, which would normalise each share
            "image_size": 32,
            "optimiser": "sgd",  # Adam would make whole steps of a gradient that is 0 but for noise
            "learning_rate": 0.02,
            "epochs": 3,
            "export": False,
            **changes,
        }
        path = tmp_path / f"{out}.json"
        path.write_text(json.dumps(config))
        words = ["-m", "distill", "train", "--config", path, "--out", tmp_path / out]
        words += ["--release", tmp_path / "release.json", "--cache", tmp_path / "cache", *more]
        return subprocess.Popen(
            [*launcher, *map(str, words)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def finished(process, folder):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    report = Report.model_validate_json((folder / "report.json").read_bytes())
    return report, load_file(folder / "student.safetensors"), output


def losses(report):
    return [value for epoch in report.epochs for value in (epoch.loss, *epoch.losses.values())]


def test_two_processes_give_the_losses_of_one_with_the_doubled_batch(start, tmp_path):
    alone, weights, _ = finished(start(ALONE, "alone", batch_size=16), tmp_path / "alone")
    both, shared, said = finished(start(TOGETHER, "both", batch_size=8), tmp_path / "both")

    assert losses(both) == pytest.approx(losses(alone), rel=2e-3, abs=2e-3)  # bfloat16
    for name, value in weights.items():
        torch.testing.assert_close(shared[name], value, atol=1e-3, rtol=0.01, msg=name)
    assert said.count("unseen top-1") == 1, "each process told the result"


GRADIENT = """
import torch
from torch.distributed import all_reduce
from distill.method.losses import l_im_cst
from distill.training.distributed import any_process, gather, processes, share

images, teacher = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)).unbind()
whole, part = (torch.nn.Linear(5, 5) for _ in range(2))
with torch.no_grad():
    for model in (whole, part):
        model.weight.copy_(torch.eye(5))
        model.bias.zero_()
expected = l_im_cst(whole(images), teacher)
expected.backward()
found = l_im_cst(gather(part(images[share(6)])), teacher)
found.backward()
all_reduce(part.weight.grad)
mean = part.weight.grad / processes().num_processes
assert torch.equal(found, expected), (found, expected)
torch.testing.assert_close(mean, whole.weight.grad)
second = processes().process_index == 1
assert any_process(second) and not any_process(False)
print("the same" if second else "")
"""


def test_the_gradients_of_shares_add_up_to_that_of_the_whole_batch(tmp_path):
    (tmp_path / "gradient.py").write_text(GRADIENT)
    done = subprocess.run(
        [*TOGETHER, str(tmp_path / "gradient.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "the same" in done.stdout


def test_a_stop_of_one_process_stops_both_at_one_step_and_they_go_on_together(start, tmp_path):
    long = {"batch_size": 8, "epochs": 200}
    process = start(TOGETHER, "run", "--events", **long)
    seen = []
    for line in process.stdout:
        seen.append(line)
        if '"epoch"' in line:
            break
    else:
        pytest.fail("".join(seen))
    trainers = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(trainers) == 2
    os.kill(int(trainers[1]), signal.SIGTERM)
    rest, _ = process.communicate(timeout=300)
    assert rest.count("stopped; continue with the same command and --resume") == 1, rest

    refused = start(ALONE, "run", "--resume", **long)
    said, _ = refused.communicate(timeout=300)
    assert refused.returncode == 1
    assert "resume with as many processes as it began with" in " ".join(said.split())

    again = start(TOGETHER, "run", "--resume", "--events", **long)
    first = next(line for line in again.stdout if '"epoch"' in line)
    assert json.loads(first)["data"]["epoch"] > 1
    again.send_signal(signal.SIGTERM)
    rest, _ = again.communicate(timeout=300)
    assert "--resume" in rest
