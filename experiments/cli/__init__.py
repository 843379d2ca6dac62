"""The `weakseg` command. Help and listings answer at once: torch is imported only by the verbs that need it."""

from __future__ import annotations

import os
import sys
import time
import traceback
from contextlib import nullcontext, suppress
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path

from common.training.signals import PATIENCE, Stopped, die_with_parent, lossy_output, rank, stop_request

USAGE = """\
usage: weakseg <command> [options]

train and evaluate
  fit          train a method:        weakseg fit --config quickstart --config tv
  validate     validation metrics:    weakseg validate --run RUN_DIR
  test         test metrics:          weakseg test --run RUN_DIR [--which best|last]
  predict      label your images:     weakseg predict --run RUN_DIR --images FOLDER --output FOLDER
  pseudo       label its training images, to train on: weakseg pseudo --run RUN_DIR --output FOLDER
  propose      label views by boxes of some, and depth: weakseg propose --config rooms --output FOLDER
  export       the network as a file: weakseg export --run RUN_DIR --output model.pt2|model.onnx
  push, pull   runs on the Hugging Face hub: weakseg push USER/NAME --run RUN_DIR, weakseg pull USER/NAME --output DIR

label
  annotate     draw labels in a browser: weakseg annotate FOLDER --classes background,horse
  suggest      what to label next:       weakseg suggest --run RUN_DIR --images FOLDER -n 20 --output FOLDER
  review       where model and masks differ, as a page: weakseg review --run RUN_DIR --output FOLDER

compare
  compare      finished runs in tables, curves and pictures: weakseg compare runs
  study        the runs of a table, and its page:            weakseg study quickstart

look around
  demo         three networks trained, compared and pictured, in minutes
  methods      the papers and baselines there are
  datamodules  the data sets there are
  doctor       check the installation and, with --config NAME, the data it names

`weakseg fit --help` lists what a run can be told; `weakseg fit --model.help NAME` what one method can.
An error is one line; set WEAKSEG_TRACEBACK=1 to see where it came from. `weakseg --version` tells the version.
"""
VERBS = (
    *("fit", "validate", "test", "predict", "pseudo", "propose", "export", "push", "pull"),
    *("annotate", "suggest", "review", "compare", "study"),
    *("demo", "methods", "datamodules", "doctor"),
)


LAUNCHER = "WEAKSEG_LAUNCHER"  # the process that starts one for each further device


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 a wrong input, 2 a wrong command line, 75 (EX_TEMPFAIL) a
    training that a signal stopped, to be started again with `--resume auto`, 130 another command after Ctrl-C."""
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":  # names of files may be no UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with lossy_output(), stop_request.listening(arguments is None) if verb == "fit" else nullcontext():
            return run(verb, rest)
    except Stopped as stop:
        if not rank():
            say(str(stop))
        return os.EX_TEMPFAIL
    except KeyboardInterrupt:
        say("interrupted")
        return 130


def say(line: str) -> None:
    with suppress(OSError):  # a closed terminal
        print(f"weakseg: {line}", file=sys.stderr, flush=True)


def run(verb: str, rest: list[str]) -> int:
    """The command, its expected errors in one line."""
    if verb in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if verb == "--version":
        from importlib.metadata import version

        print(version("weakseg"))
        return 0
    if verb not in VERBS:
        print(f"weakseg: there is no command '{verb}'\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    if verb == "fit" and {"-h", "--help"} & {*rest}:
        from experiments.cli.options import help_page

        print(help_page(), end="")
        return 0
    if os.environ.get(LAUNCHER) == str(os.getppid()) or "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()  # an agent of torchrun that is killed leaves its processes, which would train on without it
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        command = import_module(f"experiments.cli.{verb}")
        stop_request.begun = True
        return command.main(rest) or 0
    except Exception as error:
        if stop_request.raised and not stop_request.training:  # foreign code made this error of it
            raise stop_request.stopped() from error
        if os.environ.get("WEAKSEG_TRACEBACK"):
            raise
        if isinstance(error, (ValueError, OSError, ArithmeticError, ModuleNotFoundError)):
            from experiments.cli.messages import explain

            tell(explain(str(error), error))
        else:
            tell(unexpected(error))
    return 1


def tell(line: str) -> None:
    """Print an error. Most are those of all processes: then the first one tells it, and ends the others with itself."""
    if rank():
        time.sleep(PATIENCE)
    print(f"weakseg: error: {line}", file=sys.stderr)


def unexpected(error: Exception) -> str:
    """What is told of an error that nobody has foreseen; its traceback goes to a file."""
    words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    folder = Path(os.environ.get("WEAKSEG_CACHE", "~/.cache/weakseg")).expanduser() / "errors"
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        told = f"weakseg {' '.join(sys.argv[1:])}\n{''.join(traceback.format_exception(error))}"
        path.write_text(told, errors="backslashreplace")  # of words that are no UTF-8
    except OSError as why:
        return f"unexpected {words}; its traceback could not be written ({why}): set WEAKSEG_TRACEBACK=1 to see it"
    return f"unexpected {words}; please report it with {path}"
