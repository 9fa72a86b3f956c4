"""How OpenMP threads wait in training. Must be set before torch is imported."""

import os
from collections.abc import Mapping, MutableMapping
from typing import Final

WAIT_POLICY: Final = "OMP_WAIT_POLICY"
# The variables with which users choose a policy: OpenMP's, GNU's and Intel's.
CHOICES: Final = (WAIT_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def let_idle_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make waiting OpenMP threads sleep instead of spin, unless the user chose otherwise.

    A spinning thread occupies a core that the thread it waits for may need: on a machine with other
    busy processes, a training step took 2.5 times as long. OpenMP reads the variable when torch
    loads it; afterwards this affects only child processes.
    """
    if not any(name in environment for name in CHOICES):
        environment[WAIT_POLICY] = "PASSIVE"


def wait_policy(environment: Mapping[str, str] = os.environ) -> str:
    """How threads wait, for people: "sleep", "spin", or the user's settings."""
    chosen = {name: environment[name] for name in CHOICES if name in environment}
    if not chosen:
        return "spin"  # OpenMP's default
    if chosen == {WAIT_POLICY: "PASSIVE"}:
        return "sleep"
    return " ".join(f"{name}={value}" for name, value in chosen.items())
