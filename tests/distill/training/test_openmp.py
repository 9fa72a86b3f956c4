"""The policy by which threads wait."""

import pytest

from distill.training.openmp import let_idle_threads_sleep, wait_policy


def test_threads_that_wait_sleep_unless_the_user_chose_otherwise() -> None:
    environment = {"OMP_NUM_THREADS": "2"}
    let_idle_threads_sleep(environment)
    assert environment == {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize(
    "choice", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "10"}, {"KMP_BLOCKTIME": "200"}]
)
def test_the_choice_of_the_user_is_kept(choice: dict[str, str]) -> None:
    environment = dict(choice)
    let_idle_threads_sleep(environment)
    assert environment == choice


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"OMP_NUM_THREADS": "2"}, "spin"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "sleep"),
        ({"GOMP_SPINCOUNT": "10"}, "GOMP_SPINCOUNT=10"),
    ],
)
def test_the_policy_can_be_shown(environment: dict[str, str], shown: str) -> None:
    assert wait_policy(environment) == shown
