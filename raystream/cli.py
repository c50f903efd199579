"""The `raystream` command.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted. A user's mistake gets one sentence on stderr, never a
traceback; a pipe that closes early ends the command quietly.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

from raystream.errors import InvalidArgument, RaystreamError

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    from raystream.commands.shell import Shell

    args = build_parser().parse_args(argv)
    try:
        code: int = args.run(Shell(args))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has what it wanted. What is still buffered must not fail at the interpreter's exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RaystreamError as error:
        code = EXIT_USAGE if isinstance(error, InvalidArgument) else EXIT_FAILURE
        return _fail(_in_shell_terms(str(error)) or type(error).__name__, code)
    except OSError as error:
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}", EXIT_FAILURE)


def _in_shell_terms(sentence: str) -> str:
    """What an error says to do, as a command where it is a call."""
    return re.sub(r"cluster\.create_topic\('([^']*)'\)", r"raystream topic create \1", sentence)


def _fail(sentence: str, code: int) -> int:
    print(f"raystream: {sentence}", file=sys.stderr)
    return code


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from raystream import __version__
    from raystream.commands import bench, broker, consume, demo, group, lifecycle, produce, quota, topic

    parser = argparse.ArgumentParser(
        prog="raystream",
        description="A Kafka-like distributed log native to Ray. Commands find the cluster as raystream.connect() "
        "does: $RAY_ADDRESS, else the cluster that owns the data directory, else one that ends with the command.",
    )
    parser.add_argument("--version", action="version", version=f"raystream {__version__}")
    _add_options(parser, default=None, as_json=False)
    # The same options after the subcommand; absent, they leave what stood before it.
    options = argparse.ArgumentParser(add_help=False)
    _add_options(options, default=argparse.SUPPRESS, as_json=argparse.SUPPRESS)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (demo, lifecycle, topic, broker, group, quota, produce, consume, bench):
        command.add(commands, options)
    return parser


def _add_options(parser: argparse.ArgumentParser, *, default: str | None, as_json: bool | str) -> None:
    parser.add_argument(
        "--data-dir",
        default=default,
        metavar="DIR",
        help="where records are kept; default: $RAYSTREAM_DATA or .raystream",
    )
    parser.add_argument(
        "--address", default=default, metavar="HOST:PORT", help="the Ray cluster; auto: the one at hand"
    )
    parser.add_argument("--json", action="store_true", default=as_json, help="print JSON for programs")


if __name__ == "__main__":
    sys.exit(main())
