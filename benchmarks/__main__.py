"""Runs benchmarks sequentially: `python -m benchmarks [speed.enrichment_rate …]`.

Each runs in its own process with default options. A failure does not stop the others.
"""

import pkgutil
import subprocess
import sys

import benchmarks


def runnable() -> list[str]:
    """The names of all benchmarks: the modules below this package without a leading underscore."""
    modules = pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")
    names = [module.name.removeprefix("benchmarks.") for module in modules if not module.ispkg]
    return [name for name in names if "_" not in (part[0] for part in name.split("."))]


def main() -> None:
    known = runnable()
    chosen = sys.argv[1:] or known
    for name in chosen:
        if name not in known:
            sys.exit(f"there is no benchmark {name!r}: choose {', '.join(known)}")
    failed: list[str] = []
    for name in chosen:
        print(f"\n── {name} " + "─" * (70 - len(name)), flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
