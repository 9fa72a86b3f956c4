"""How a training run ends, as an exit status and a line."""

import pytest
import torch

from distill.errors import DataError, Interrupted
from distill.training.outcome import is_out_of_memory, outcome_of


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (Interrupted(), 75, "distill: stopped; continue with the same command and --resume"),
        (
            Interrupted("shards are kept"),
            75,
            "distill: stopped; shards are kept; continue with the same command and --resume",
        ),
        (DataError("no images"), 1, "distill: no images"),
        (MemoryError(), 71, "distill: out of memory with a batch_size of 64: use a smaller one"),
    ],
)
def test_an_expected_error_has_a_status_and_a_line(error, status, message):
    outcome = outcome_of(error, 64)
    assert outcome.status == status and outcome.message.startswith(message)
    assert "\n" not in outcome.message


def test_a_bug_has_no_outcome():
    assert outcome_of(RuntimeError("shapes do not fit"), 64) is None


def test_lack_of_memory_is_known_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError()) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
