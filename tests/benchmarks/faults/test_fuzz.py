"""A short round of benchmarks.faults.fuzz; the long one is `python -m benchmarks.faults.fuzz`."""

import pytest

pytest.importorskip("fastapi")

from benchmarks.faults.fuzz import attack, service

pytestmark = pytest.mark.sqlite


def test_made_up_requests_get_no_answer_that_is_not_described(tmp_path, migrated):
    migrated(tmp_path / "data")
    with service(tmp_path) as (address, key):
        options = ("--phases", "examples,fuzzing", "--max-examples", "2")
        assert attack(address, key, 0, *options, report=tmp_path / "report.json") > 200
