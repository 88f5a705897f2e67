"""What every script's command line shares: `--config FILE`, own flags, `key=value`, and one-line errors."""
import argparse
import os
import sys
from typing import Callable, Optional, Sequence, Tuple

from muse.config import MuseConfig, load_config


def parser(description: str) -> argparse.ArgumentParser:
    """An ArgumentParser with `--config`; add a script's own flags to it."""
    result = argparse.ArgumentParser(
        description=description, allow_abbrev=False,
        epilog="Any number of key=value overrides of the config may follow; `config=FILE` stands for --config FILE.")
    result.add_argument("--config", metavar="FILE", help="YAML file, for example configs/muse_1b/stage3.yaml")
    return result


def parse(parser: argparse.ArgumentParser, argv: Optional[Sequence[str]] = None, *,
          resolve_env: bool = True) -> Tuple[argparse.Namespace, MuseConfig]:
    """Flags and overrides in any order -> (flags, config); see `load_config` for `resolve_env`.

    Raises ValueError or OSError for what is wrong in the config; exits with usage for what is wrong in the flags.
    """
    args, rest = parser.parse_known_args(argv)
    overrides = []
    for item in rest:
        if item.startswith("-") or "=" not in item:
            parser.error(f"unrecognized argument {item!r}; settings are written key=value")
        elif item.startswith("config="):
            if args.config is not None:
                parser.error(f"two config files: {args.config} and {item.removeprefix('config=')}")
            args.config = item.removeprefix("config=")
        else:
            overrides.append(item)
    if not args.config:
        parser.error("no config file: give --config FILE")
    return args, load_config(args.config, overrides, resolve_env=resolve_env)


def run(main: Callable[[], Optional[int]]) -> None:
    """Call `main` and exit with its status; a user's mistake becomes one line on stderr and status 1.

    MUSE_DEBUG=1 shows the traceback instead.
    """
    try:
        status = main()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        if os.environ.get("MUSE_DEBUG") == "1":
            raise
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        sys.exit(1)
    sys.exit(status)
