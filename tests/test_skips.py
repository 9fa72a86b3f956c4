"""A skip is reported on a machine that lacks something, and is a failure in CI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    "test_one.py": "import pytest\n\ndef test_it():\n    pytest.skip('no browser here')\n",
    "test_all.py": "import pytest\n\npytest.skip('no driver here', allow_module_level=True)\n",
    "test_xfail.py": "import pytest\n\n@pytest.mark.xfail\ndef test_it():\n    assert False\n",
}


@pytest.fixture
def outcome(tmp_path):
    """Run FILES with the plugin of this suite, with CI set to a value or not at all."""
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)

    def run(ci: str | None) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CI": ci or ""}
        command = [sys.executable, "-m", "pytest", "-p", "tests.conftest"]
        command += ["-ra", "--continue-on-collection-errors"]
        return subprocess.run(
            [*command, "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )

    return run


def test_skips_pass_on_a_developers_machine_and_give_their_reasons(outcome):
    done = outcome(ci=None)
    assert done.returncode == 0
    assert "2 skipped, 1 xfailed" in done.stdout
    assert "no browser here" in done.stdout and "no driver here" in done.stdout


def test_skips_fail_in_ci_with_their_reasons_and_expected_failures_do_not(outcome):
    done = outcome(ci="true")
    assert done.returncode == 1
    assert "1 failed, 1 xfailed, 1 error" in done.stdout
    assert "Nothing may be skipped in CI. Skipped: no browser here" in done.stdout
    assert "Nothing may be skipped in CI. Skipped: no driver here" in done.stdout
