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
from distill.training.outcome import INTERRUPTED

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def command(colour_images, colour_teacher, colours, tmp_path):
    """A function that gives the arguments of Python for a `distill train` into the folder `out`."""
    (tmp_path / "release.json").write_text(colours.model_dump_json())

    def command(out, *more, **changes):
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
        return list(map(str, words))

    return command


def result(folder):
    report = Report.model_validate_json((folder / "report.json").read_bytes())
    return report, load_file(folder / "student.safetensors")


def losses(report):
    return [value for epoch in report.epochs for value in (epoch.loss, *epoch.losses.values())]


def test_two_processes_of_torchrun_give_the_losses_of_one_with_the_doubled_batch(
    command, fork_server, tmp_path
):
    status, said = fork_server.start(*command("alone", batch_size=16)).wait()
    assert status == 0, said
    done = subprocess.run(
        [*TORCHRUN, *command("both", batch_size=8)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout

    (alone, weights), (both, shared) = result(tmp_path / "alone"), result(tmp_path / "both")
    assert losses(both) == pytest.approx(losses(alone), rel=2e-3, abs=2e-3)  # bfloat16
    for name, value in weights.items():
        torch.testing.assert_close(shared[name], value, atol=1e-3, rtol=0.01, msg=name)
    assert done.stdout.count("unseen top-1") == 1, "each process told the result"


def run_in_two(fork_server, path, code):
    """Exit status and output of two processes that run `code`, written to `path`."""
    path.write_text(code)
    return [process.wait() for process in fork_server.start_two(str(path))]


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


def test_the_gradients_of_shares_add_up_to_that_of_the_whole_batch(fork_server, tmp_path):
    ends = run_in_two(fork_server, tmp_path / "gradient.py", GRADIENT)
    assert [status for status, _ in ends] == [0, 0], ends
    assert "the same" in ends[1][1]


SHARES = """
from dataclasses import replace
import torch
from distill.data.augment import sample_views
from distill.training.distributed import connect, processes, share
from distill.training.loop import _generator
from tests.distill.training.test_loop import DIM, make_config, make_data, outcome, run

connect("cpu")
losses = {"im_cst": 1, "cap": 1}
config = make_config(student="test_vit", epochs=1, batch_size=16, losses=losses, captions="c")
clean = make_data(32)  # one step of both processes
clean = replace(clean, captions=clean.teacher)
generator = torch.Generator().manual_seed(0)
views = sample_views(32 * 3, generator).view(32, 3, -1)
teacher = torch.randn(32, 3, DIM, generator=generator)
for data in clean, replace(clean, views=views, teacher=teacher):
    expected = outcome(run(config, data))
    foreign = torch.ones(32, dtype=torch.bool)
    foreign[data.epoch_indices(_generator(config.seed, 0))[share(32)]] = False
    own = {"pixels": data.pixels.masked_fill(foreign[:, None, None, None], 0)}
    for name in ("teacher", "captions", "views"):
        if (values := getattr(data, name)) is not None:
            mask = foreign.view(-1, *[1] * (values.ndim - 1))
            own[name] = values.masked_fill(mask, float("nan"))
    assert outcome(run(config, replace(data, **own))) == expected
print("the same" if processes().process_index == 1 else "")
"""


def test_a_process_needs_the_pixels_and_features_of_its_own_share_alone(fork_server, tmp_path):
    ends = run_in_two(fork_server, tmp_path / "shares.py", SHARES)
    assert [status for status, _ in ends] == [0, 0], ends
    assert "the same" in ends[1][1]


VALIDATION = """
from dataclasses import replace
import torch
from distill.evaluation.accuracy import predict
from distill.models.student import EVALUATION_BATCH
from distill.training.distributed import connect, processes, sum_over_processes
from tests.distill.training.test_loop import make_config, make_data, make_student, run

connect("cpu")
config = make_config(epochs=2, batch_size=8, learning_rate=3e-3)  # a student with batch norm
data = make_data(32)
images = 2 * EVALUATION_BATCH + 10
targets = torch.arange(images) % len(data.text)
noise = torch.randint(0, 256, (images, 3, 32, 32), generator=torch.Generator().manual_seed(0))
pixels = (0.5 * data.seen_pixels[targets] + 0.5 * noise).to(torch.uint8)
batch = torch.arange(images) // EVALUATION_BATCH
is_own = batch % 2 == processes().process_index
own = pixels.masked_fill(~is_own[:, None, None, None], 0)
student = make_student(config)
epochs = run(config, replace(data, seen_pixels=own, seen_targets=targets), student)
hits = predict(student.encode(pixels, student.single_view), data.seen_text) == targets
assert epochs[-1].seen_top1 == 100 * hits.double().mean().item(), epochs
own_hits, own_images = int(hits[is_own].sum()), int(is_own.sum())
assert sum_over_processes(own_images) == images
assert 0 < own_hits < own_images
print("the same" if processes().process_index == 1 else "")
"""


def test_each_process_encodes_its_share_of_the_validation_images(fork_server, tmp_path):
    ends = run_in_two(fork_server, tmp_path / "validation.py", VALIDATION)
    assert [status for status, _ in ends] == [0, 0], ends
    assert "the same" in ends[1][1]


DIVERGED = """
import pytest
from distill.errors import UserError
from distill.training.distributed import connect, processes
from tests.distill.training.test_loop import make_config, make_data, run

connect("cpu")
with pytest.raises(UserError, match="the training diverged"):
    # In the only step: the first features that show it are those of the validation images.
    run(make_config(epochs=1, batch_size=16, learning_rate=1e38, optimiser="adamw"), make_data(32))
print("diverged" if processes().process_index == 1 else "")
"""


def test_a_divergence_that_one_share_of_validation_images_shows_ends_both(fork_server, tmp_path):
    ends = run_in_two(fork_server, tmp_path / "diverged.py", DIVERGED)
    assert [status for status, _ in ends] == [0, 0], ends
    assert "diverged" in ends[1][1]


def test_a_stop_of_one_process_stops_both_at_one_step_and_they_go_on_together(command, fork_server):
    long = {"batch_size": 8, "epochs": 200}
    both = fork_server.start_two(*command("run", "--events", **long))
    seen = []
    for line in both[0].stdout:
        seen.append(line)
        if '"epoch"' in line:
            break
    else:
        pytest.fail("".join(seen))
    both[1].send_signal(signal.SIGTERM)
    ends = [process.wait() for process in both]
    assert [status for status, _ in ends] == [INTERRUPTED, INTERRUPTED], ends
    said = "".join(rest for _, rest in ends)
    assert said.count("stopped; continue with the same command and --resume") == 1, said

    status, said = fork_server.start(*command("run", "--resume", **long)).wait()
    assert status == 1
    assert "resume with as many processes as it began with" in " ".join(said.split())

    again = fork_server.start_two(*command("run", "--resume", "--events", **long))
    first = next(line for line in again[0].stdout if '"epoch"' in line)
    assert json.loads(first)["data"]["epoch"] > 1
    for process in again:
        process.send_signal(signal.SIGTERM)
    assert "--resume" in "".join(process.wait()[1] for process in again)
