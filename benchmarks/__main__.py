"""Runs the benchmarks one after the other: `python -m benchmarks [NAME …]`."""

import pkgutil
import runpy
import sys

import benchmarks


def main() -> None:
    names = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
    runnable = [name for name in names if not name.startswith("_")]
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
