"""`python -m benchmarks [NAME ...] [--write]`: ours beside the peers; --write keeps the results."""

import argparse
import importlib

NAMES = (
    "views",
    "losses",
    "distortions",
    "loader",
    "ridge",
    "features",
    "distances",
    "scoring",
    "resume",
    "faults",
    "fuzz",
)


def main() -> None:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--write", action="store_true", help="keep the result under benchmarks/results/")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in NAMES]:
        parser.error(f"Expected names of {', '.join(NAMES)}, got {', '.join(unknown)}.")
    for name in options.names or NAMES:
        result = importlib.import_module(f"benchmarks.{name}").run()
        result.show(options.write)


if __name__ == "__main__":
    main()
