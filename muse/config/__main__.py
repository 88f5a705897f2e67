"""Usage: python -m muse.config check FILE [key=value ...]   what it trains, and what would fail later (exit 1)
       python -m muse.config keys                            every key, its type, default and meaning, as Markdown
"""
import argparse
import sys

from muse.config.check import check
from muse.config.keys import markdown_table
from muse.utils.cli import run


def main(argv=None):
    """Run one of the two commands; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m muse.config", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    checker = commands.add_parser("check", help="what a configuration trains, and what would fail later")
    checker.add_argument("file")
    checker.add_argument("overrides", nargs="*", metavar="key=value")
    checker.add_argument("--processes", type=int, help="of the run to come; default: NUM_PROCESSES, or the GPUs here")
    commands.add_parser("keys", help="every key as a Markdown table")
    args = parser.parse_args(argv)
    if args.command == "keys":
        print(markdown_table())
        return 0
    report = check(args.file, args.overrides, args.processes)
    print("\n".join(report.lines))
    for problem in report.problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if report.problems else 0


if __name__ == "__main__":
    run(main)
