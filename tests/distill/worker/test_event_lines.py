"""Lines that a training prints become events."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from distill.worker.event_lines import parse_event


def test_a_loss_that_is_no_number_can_still_be_sent():
    line = b'{"kind": "epoch", "data": {"loss": NaN}, "at": "2026-01-02T03:04:05Z"}'
    assert parse_event(line)["data"] == {"loss": None}
