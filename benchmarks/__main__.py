"""Runs benchmarks one after the other: `python -m benchmarks [speed.enrichment_rate …]`."""

import pkgutil
import runpy
import sys

import benchmarks


def main() -> None:
    modules = pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")
    names = [module.name.removeprefix("benchmarks.") for module in modules if not module.ispkg]
    runnable = [name for name in names if not name.rpartition(".")[2].startswith("_")]
    chosen = sys.argv[1:] or runnable
    for name in chosen:
        if name not in runnable:
            sys.exit(f"no benchmark is called {name!r}; there are: {', '.join(runnable)}")
    failed: list[str] = []
    for name in chosen:
        print(f"\n── {name} " + "─" * (70 - len(name)), flush=True)
        sys.argv = [name]
        try:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        except SystemExit as ended:  # one that is skipped, or fails, does not take the others along
            if ended.code:
                print(ended.code, file=sys.stderr)
                failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
