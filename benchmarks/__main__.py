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
    for name in chosen:
        print(f"\n── {name} " + "─" * (70 - len(name)), flush=True)
        sys.argv = [name]
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")


if __name__ == "__main__":
    main()
