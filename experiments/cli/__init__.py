"""The `weakseg` command. Help and listings answer at once: torch is imported only by the verbs that need it."""

from __future__ import annotations

import os
import sys

USAGE = """\
usage: weakseg <command> [options]

train and evaluate
  fit          train a method:        weakseg fit --config experiments/configs/recipes/quickstart_supervised.yaml
  validate     validation metrics:    weakseg validate --run RUN_DIR
  test         test metrics:          weakseg test --run RUN_DIR [--which best|last]
  predict      label your images:     weakseg predict --run RUN_DIR --images FOLDER --output FOLDER
  export       the network as a file: weakseg export --run RUN_DIR --output model.pt2|model.onnx

compare
  compare      finished runs, in tables, curves and pictures: weakseg compare runs

look around
  methods      the papers and baselines there are
  datamodules  the data sets there are
  doctor       check the installation and, with --config FILE, the data it names

`weakseg fit --help` lists what a run can be told; `weakseg fit --model.help NAME` what one method can.
A wrong input ends with one line; set WEAKSEG_TRACEBACK=1 to see where it came from.
"""
LIGHTNING_VERBS = ("fit", "validate", "test", "predict")


def listing(package: str) -> str:
    """Names and first docstring lines of the classes of `methods` or `datamodules`."""
    import datamodules
    import methods

    classes = {"methods": methods, "datamodules": datamodules}[package].CLASSES
    width = max(map(len, classes), default=0)
    return "\n".join(f"{name:{width}}  {found.line}" for name, found in sorted(classes.items()))


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done, 1 a wrong input, 2 a wrong command line)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if verb in ("methods", "datamodules"):
        print(listing(verb))
        return 0
    if verb not in (*LIGHTNING_VERBS, "compare", "doctor", "export"):
        print(f"weakseg: there is no command '{verb}'\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    try:
        if verb == "doctor":
            from experiments.cli.doctor import doctor

            doctor(rest)
            return 0
        if verb == "compare":
            from experiments.cli.compare import compare

            compare(rest)
            return 0
        if verb == "export":
            from experiments.cli.export import export_run

            export_run(rest)
            return 0
        from experiments.cli.lightning import run

        run(verb, rest)
    except (ValueError, OSError, ArithmeticError, ModuleNotFoundError) as error:
        if os.environ.get("WEAKSEG_TRACEBACK"):
            raise
        from experiments.cli.messages import explain

        print(f"weakseg: error: {explain(str(error), error)}", file=sys.stderr)
        return 1
    return 0
