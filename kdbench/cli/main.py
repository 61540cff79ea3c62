"""The entry point: chooses the command, and turns errors and interruptions into one sentence and an exit code."""

from __future__ import annotations

import argparse
import atexit
import difflib
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence

from kdbench.cli import figures, report, run, status, transfer, verify
from kdbench.cli import list as list_command
from kdbench.core.errors import Interrupted, UserError, plain
from kdbench.runner.signals import SIGNALS


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code."""
    atexit.register(gc.freeze)  # what torch and matplotlib hold is not looked through when Python ends, for a second
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    logging.basicConfig(format="kdbench: %(message)s", level=logging.WARNING)
    logging.getLogger("kdbench").setLevel(logging.INFO)
    # How long threads spin before they sleep, read when torch is loaded. By default so long that two runs on one
    # machine slow each other down a hundredfold; at this value a lone run is as fast, and two run ten times faster.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        if arguments and not command and not arguments[0].startswith("-"):
            near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"commands are {', '.join(filter(None, COMMANDS))}"
            raise UserError(f"unknown command {arguments[0]!r}: {hint} (see `python bench.py --help`)")
        build_parser, run_command = COMMANDS[command]
        SIGNALS.listen()
        options = arguments[1:] if command else arguments or ["--help"]
        return run_command(build_parser().parse_args(options))
    except UserError as error:
        print(f"kdbench: {plain(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()  # the reader (head, less) has closed the pipe
        return 141
    except OSError as error:
        print(f"kdbench: {error}; finished work is kept, and the same command continues", file=sys.stderr)
        return 2
    except Interrupted as interruption:
        why = "the time limit was reached" if SIGNALS.number is None else "interrupted"
        said = str(interruption) or f"{why}, nothing is lost; the same command continues from this step"
        print(f"kdbench: {said}", file=sys.stderr)
        return SIGNALS.code
    except KeyboardInterrupt:
        print("\nkdbench: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return SIGNALS.code


COMMANDS: dict[str, tuple[Callable[[], argparse.ArgumentParser], Callable[[argparse.Namespace], int]]] = {
    "": (run.build_parser, run.main),
    "list": (list_command.build_parser, list_command.main),
    "status": (status.build_parser, status.main),
    "report": (report.build_parser, report.main),
    "transfer": (transfer.build_parser, transfer.main),
    "figures": (figures.build_parser, figures.main),
    "verify": (verify.build_parser, verify.main),
}
