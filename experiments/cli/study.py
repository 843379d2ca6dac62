"""`weakseg study`: the runs of a table, and its page."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.studies.cluster import Jobs
    from experiments.studies.plan import Place, Run
    from experiments.studies.spec import Study

DESCRIPTION = """\
Make the runs of a study that are missing, test them, search what the study searches on val, and write its page and csv.
An interrupted study is continued by the same command. What follows -- is given to every run."""
# Fields of `experiments.studies.cluster.Cluster`.
JOBS = {
    "partition": "of SLURM",
    "account": "of SLURM",
    "qos": "of SLURM",
    "time": "limit in minutes; a job that reaches it is saved, queued again and continued (240)",
    "gpus": "of a job (0)",
    "cpus": "of a job (2)",
    "memory": "of a job, GB (what the cluster gives)",
    "at_once": "jobs that run at a time (what the scheduler lets run; local: 1)",
    "warning": "seconds before the limit at which a job is told to save (120)",
    "attempts": "times that a job may reach its limit without a step more than the time before (3)",
    "setup": "list of lines of shell before the command",
}
ROOT = Path(__file__).parents[2]
ON_ITS_WAY = ("done", "queued", "running")  # states of runs
LOOK = 10.0  # seconds between two looks at jobs that are waited for


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="weakseg study", description=DESCRIPTION, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("name", nargs="?", help="a study's name, or its file; none: list the studies")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs (runs)")
    parser.add_argument(
        "--output", type=Path, help="folder of page and csv (a checkout's experiments/results, or results)"
    )
    parser.add_argument("--data", type=Path, help="folder that holds the data sets ($WEAKSEG_DATA, or data)")
    parser.add_argument("--weights", type=Path, help="folder that holds weights ($WEAKSEG_WEIGHTS)")
    parser.add_argument("--records", type=Path, metavar="DIR",
                        help="folder with what the page needs of runs, in git perhaps: what is not in --runs is taken "
                        "from there, finished runs are added")  # fmt: skip
    parser.add_argument("--update", type=Path, action="append", default=[], metavar="FILE",
                        help="fill in the tables between <!-- study NAME --> and <!-- /study NAME -->")  # fmt: skip
    parser.add_argument("--page", action="store_true", help="run nothing, write the page from the runs that there are")
    parser.add_argument("--dry-run", action="store_true", help="run nothing, print the commands and the budget")
    parser.add_argument("--row", metavar="REGIME/ROW", help="make and test one run only: of this row, with --seed")
    parser.add_argument("--seed", type=int, help="seed of that run")
    parser.add_argument("--cluster", choices=["slurm", "local"], help="make the runs as jobs, one array")
    parser.add_argument("--wait", action="store_true", help="wait for the jobs, then write the page")
    parser.add_argument("--status", action="store_true", help="run nothing, print how far each run is")
    parser.add_argument("--wandb-sweep", action="store_true", help="print a W&B sweep whose agents make the runs")
    jobs = parser.add_argument_group("jobs of --cluster", "also in the file cluster.yaml of the working directory")
    for name, words in JOBS.items():
        jobs.add_argument(f"--cluster.{name}", dest=f"cluster.{name}", metavar="VALUE", help=words)
    return parser


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and what follows `--`."""
    from experiments.cli.messages import near

    own = [*takewhile(lambda word: word != "--", arguments)]
    extra = [*arguments][len(own) + 1 :]
    parser = make_parser()
    options, strange = parser.parse_known_args(own)
    options.of_jobs = {name: value for name in JOBS if (value := getattr(options, f"cluster.{name}")) is not None}
    if strange:
        known = [name for action in parser._actions for name in action.option_strings]
        raise ValueError(
            f"weakseg study has no option '{strange[0]}'{near(strange[0], known)}; options of every run follow --"
        )
    if options.jobs < 1:
        raise ValueError(f"--jobs is a number of runs, got {options.jobs}")
    if (options.row is None) != (options.seed is None):
        raise ValueError("--row REGIME/ROW and --seed SEED belong together: they name one run")
    if options.cluster is None and (options.of_jobs or options.wait):
        raise ValueError("--wait and --cluster.NAME are about jobs: give --cluster slurm, or --cluster local")
    return options, extra


def main(arguments: Sequence[str]) -> int:
    """`weakseg study`; 1 if a run failed or the study was stopped.

    Raises:
        ValueError, OSError: no such study, row or option; data or weights are not there.
    """
    options, extra = parse(arguments)
    from experiments.cli.configs import find_config
    from experiments.studies import plan
    from experiments.studies.records import take
    from experiments.studies.spec import read_study, shipped

    if options.name is None:
        print("\n".join(f"{name:20} {read_study(name).title}" for name in shipped()))
        return 0
    study = read_study(options.name)
    if options.cluster or options.status:  # asked from anywhere
        options.runs = options.runs.resolve()
    for name in sorted(study.configs()):
        find_config(name)
    place = plan.find_place(options.runs, options.data, options.weights, extra)
    if options.wandb_sweep:
        print(sweep(study, options, place), end="")
        return 0
    if options.records:
        take(plan.all_runs(study, place), place, options.records)
    if options.dry_run:
        dry_run(study, place, options.jobs)
        return 0
    if not options.page and not options.status:
        plan.check_place(study, place)
    if options.row is not None:
        return single(plan.find_run(study, place, options.row, options.seed))
    if options.status:
        print(jobs_of(place, study).table(plan.all_runs(study, place)))
        return 0
    if options.cluster:
        return make_jobs(study, place, options)
    failed = [] if options.page else make_runs(study, place, options.jobs)
    if failed is None:
        print("stopped; the same command continues", file=sys.stderr)
        return 1
    write(study, place, options)
    if failed:
        print(f"{len(failed)} runs failed: {', '.join(map(str, failed))}", file=sys.stderr)
    return 1 if failed else 0


# Making runs -------------------------------------------------------------------------------------------------------


def make_runs(study: Study, place: Place, jobs: int) -> list[Path] | None:
    """Make, test and search what is missing; the run directories that failed, None if it was stopped."""
    from experiments.studies.plan import all_runs, check_options
    from experiments.studies.runner import Runner

    runs = all_runs(study, place)
    for run in runs:
        check_options(run)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failed = Runner(runs, jobs).run()
        search_postprocess(study, place)
    except KeyboardInterrupt:
        return None
    finally:
        signal.signal(signal.SIGTERM, before)
    return failed


def search_postprocess(study: Study, place: Place) -> None:
    """Searches over post-processing, of the finished runs."""
    from experiments.studies.plan import settings_to_try

    for folder, settings in settings_to_try(study, place).items():
        if (folder / "summary.json").exists():
            from experiments.studies.postprocess import score_settings

            score_settings(folder, study.score, settings)


def jobs_of(place: Place, study: Study) -> Jobs:
    from experiments.studies.cluster import Jobs

    return Jobs((place.runs / study.name / ".jobs").resolve())


def make_jobs(study: Study, place: Place, options: argparse.Namespace) -> int:
    """Submit what is missing and not on its way; write the page if all is there, or wait until it is."""
    from experiments.studies.cluster import read_cluster
    from experiments.studies.element import Element
    from experiments.studies.plan import all_runs, settings_to_try

    cluster, jobs, runs = read_cluster(options.of_jobs), jobs_of(place, study), all_runs(study, place)
    executor, settings = jobs.executor(options.cluster, cluster, study.name), settings_to_try(study, place)
    todo = [run for run, (state, _) in zip(runs, jobs.states(runs), strict=True) if state not in ON_ITS_WAY]
    given = cluster.time, cluster.attempts, cluster.cpus
    elements = [Element(run, study.score, settings.get(run.folder, []), *given) for run in todo]
    if options.cluster == "local":
        jobs.run_here(elements, executor, cluster.at_once or 1)
    elif elements:
        array = jobs.submit(elements, executor)
        print(f"{len(elements)} of {len(runs)} runs submitted, job {array}", flush=True)
    while options.wait and {"queued", "running"} & {state for state, _ in jobs.states(runs)}:
        time.sleep(LOOK)
    states = [state for state, _ in jobs.states(runs)]
    if {*states} == {"done"}:
        search_postprocess(study, place)
        write(study, place, options)
        return 0
    print(jobs.table(runs))
    if {*states} & {"queued", "running"}:
        print(f"look again: weakseg study {study.given} --status; the page: the same command, when all are done")
        return 0
    print("the same command submits again what has failed or was cancelled", file=sys.stderr)
    return 1


def single(run: Run) -> int:
    """One run in this process: an ordinary `weakseg fit`, and the tests of its row. What agents of W&B call."""
    from experiments.cli import main as weakseg
    from experiments.studies.runner import claimed

    with claimed(run.folder):
        commands = run.missing()
        if not commands:
            print(f"finished before: {run.folder}")
        for words in commands:
            sys.argv[1:] = words  # Lightning calls the command again for each further device
            if status := weakseg(words):
                return status
    return 0


# What is told ------------------------------------------------------------------------------------------------------


def write(study: Study, place: Place, options: argparse.Namespace) -> None:
    from experiments.compare.report import fill
    from experiments.studies.page import tables_of, write_page
    from experiments.studies.plan import all_runs
    from experiments.studies.records import record

    if options.records:
        record(all_runs(study, place), place, options.records)
    in_checkout = (ROOT / ".git").exists() and (ROOT / "experiments" / "results").is_dir()
    folder = options.output or (ROOT / "experiments" / "results" if in_checkout else Path("results"))
    page, tables = write_page(study, place, folder)
    for file in options.update:
        fill(file, f"study {study.name}", tables_of(study, tables))
    print(f"{tables_of(study, tables, '{}')}\n\npage: {page.resolve()}")


def dry_run(study: Study, place: Place, jobs: int) -> None:
    """The commands that are still to be run, and the budget: runs, those done, and minutes as far as they are known."""
    from tqdm import tqdm

    from common.training.files import read_summary
    from experiments.studies.plan import all_runs

    runs = all_runs(study, place)
    for run in runs:
        for words in run.missing():
            print(shlex.join(["weakseg", *words]))
    left, unknown = 0.0, 0
    print()
    for name in dict.fromkeys(run.name for run in runs):
        mine = [run for run in runs if run.name == name]
        done = [read_summary(run.folder)["seconds"] for run in mine if run.finished]
        each = f", {mean(done) / 60:.1f} min each" if done else ""
        print(f"{name}: {len(mine)} runs, {len(done)} done{each}")
        left += (len(mine) - len(done)) * mean(done) if done else 0
        unknown += 0 if done else len(mine)
    known = f"{tqdm.format_interval(left / jobs)} left of rows that have a run"
    print(f"{len(runs)} runs; {known}" + (f", and {unknown} runs of unknown length" if unknown else ""))


def sweep(study: Study, options: argparse.Namespace, place: Place) -> str:
    """A W&B sweep over rows and seeds. Searches are not in it: they come first, and choose what the rows say."""
    import yaml

    from experiments.studies.plan import named_rows

    given = [f"--{name}={value}" for name in ("data", "weights") if (value := getattr(options, name))]
    given += [f"--runs={options.runs}"] if options.runs != Path("runs") else []
    extra = ["--", *place.extra] if place.extra else []
    content = {
        "program": "weakseg",
        "name": study.name,
        "method": "grid",
        "parameters": {"row": {"values": [*named_rows(study)]}, "seed": {"values": [*study.seeds]}},
        "command": ["${program}", "study", study.given, *given, "${args}", *extra],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
