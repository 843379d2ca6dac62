"""The runs of a study as jobs of a cluster's scheduler, through `submitit`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from common.training.files import read_json, write_json
from experiments.compare.columns import near
from experiments.studies.element import Element, slurm_states
from experiments.studies.plan import Run
from experiments.studies.runner import is_claimed, last_line, log_file, steps_done

FILE = "cluster.yaml"
PAUSE = 2.0  # seconds between two looks at jobs
QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")  # states of SLURM


@dataclass(frozen=True)
class Cluster:
    """What a job is given; each job is one run on one node.

    Args:
        partition, account, qos: of SLURM.
        time: limit in minutes; a job that reaches it is saved, queued again and continued.
        gpus, cpus: of a job.
        memory: of a job, in GB; None: what the cluster gives.
        at_once: jobs that run at a time; None: as many as the scheduler lets, or one without a scheduler.
        warning: seconds before the limit at which a job is told to save.
        attempts: times that a job may reach its limit without a step more than the time before.
        setup: lines of shell before the command, such as `module load cuda`.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: int = 240
    gpus: int = 0
    cpus: int = 2
    memory: float | None = None
    at_once: int | None = None
    warning: int = 120
    attempts: int = 3
    setup: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("time", "cpus", "at_once", "warning", "attempts"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is at least 1, got {value}")
        if self.warning >= self.time * 60:
            raise ValueError(f"warning ({self.warning} s) is less than the time limit, {self.time} minutes")


def read_cluster(told: Mapping[str, str], file: Path = Path(FILE)) -> Cluster:
    """What `cluster.yaml` in the working directory says, if it is there, and over it `--cluster.NAME VALUE` (in YAML).

    Raises:
        ValueError: an option that there is not, or that has another type.
    """
    try:
        content = yaml.safe_load(file.read_text()) or {} if file.is_file() else {}
        values = {name: yaml.safe_load(value) for name, value in told.items()}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} or a --cluster option is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold `name: value` pairs, got {content!r}")
    known = [field.name for field in fields(Cluster)]
    for name in content | values:
        if name not in known:
            where = f"{file} has an option" if name in content else "there is no option"
            raise ValueError(f"{where} '{name}'{near(str(name), known)}: jobs have {', '.join(known)}")
    try:
        return TypeAdapter(Cluster).validate_python(content | values)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(map(str, first["loc"][:1]))
        raise ValueError(f"cluster{'.' * bool(option)}{option}: {first['msg']}, got {first['input']!r}") from error


@dataclass(frozen=True)
class Jobs:
    """The jobs of a study.

    Args:
        folder: what submitit writes, and `jobs.json`, the ids of jobs by run directory.
    """

    folder: Path

    def ids(self) -> dict[str, str]:
        file = self.folder / "jobs.json"
        return read_json(file) if file.exists() else {}

    def executor(self, kind: str, cluster: Cluster, name: str) -> Any:
        """Raises ModuleNotFoundError, OSError: there is no submitit, or no SLURM."""
        try:
            import submitit
        except ModuleNotFoundError:
            raise ModuleNotFoundError("--cluster needs submitit: pip install -e '.[cluster]'") from None
        if kind == "slurm" and shutil.which("sbatch") is None:
            raise OSError("--cluster slurm needs SLURM's commands: sbatch is not on the PATH; --cluster local does not")
        executor = submitit.AutoExecutor(self.folder, cluster=kind, slurm_max_num_timeout=10**6)  # see `Element`
        told = {
            "name": name,
            "timeout_min": cluster.time,
            "cpus_per_task": cluster.cpus,
            "gpus_per_node": cluster.gpus,
            "mem_gb": cluster.memory,
            "stderr_to_stdout": True,
            "slurm_partition": cluster.partition,
            "slurm_account": cluster.account,
            "slurm_qos": cluster.qos,
            "slurm_array_parallelism": cluster.at_once,
            "slurm_signal_delay_s": cluster.warning,
            "slurm_setup": [*cluster.setup],
            "slurm_additional_parameters": {"requeue": True},
            "local_setup": [*cluster.setup],
        }
        executor.update_parameters(**{key: value for key, value in told.items() if value not in (None, [], 0)})
        return executor

    def submit(self, elements: Sequence[Element], executor: Any) -> str:
        """All as one job array; its id."""
        with executor.batch():
            jobs = [executor.submit(element) for element in elements]
        names = [str(element.folder) for element in elements]
        write_json(self.folder / "jobs.json", self.ids() | dict(zip(names, (job.job_id for job in jobs), strict=True)))
        return str(jobs[0].job_id).partition("_")[0]

    def run_here(self, elements: Sequence[Element], executor: Any, at_once: int) -> None:
        """Without a scheduler: some at a time, until all have ended."""
        waiting, running = [*elements], list[Any]()
        while waiting or running:
            running = [job for job in running if not job.done()]
            while waiting and len(running) < at_once:
                running.append(executor.submit(waiting.pop(0)))
            time.sleep(PAUSE)

    def states(self, runs: Sequence[Run]) -> list[tuple[str, str]]:
        """Of each run, its state in a word and more about it: `done`, `queued`, `running`, `failed`, `missing`, or
        SLURM's word for what ended otherwise (`cancelled`)."""
        ids = self.ids()
        known = slurm_states([ids[str(run.folder)] for run in runs if str(run.folder) in ids and run.missing()])
        return [self.state(run, ids.get(str(run.folder)), known) for run in runs]

    def state(self, run: Run, job: str | None, known: Mapping[str, str]) -> tuple[str, str]:
        done, steps = steps_done(run.folder)
        at = f"at step {done} of {steps}" if steps else ""
        word = known.get(job or "", "")
        if not run.missing():
            return "done", ""
        if word in QUEUED:
            return "queued", at
        if word in ("RUNNING", "COMPLETING") or (not job and is_claimed(run.folder)):
            return "running", at
        log = log_file(run.folder)
        if word and word not in ("FAILED", "COMPLETED"):
            return word.lower().replace("_", " "), at
        if not log.exists():
            return ("failed", f"see {self.folder}/{job}_0_log.out") if job else ("missing", "")
        return "failed", f"{last_line(log)}; {log}"

    def table(self, runs: Sequence[Run]) -> str:
        """A line for each run."""
        lines = [(run.name, str(run.seed), *state) for run, state in zip(runs, self.states(runs), strict=True)]
        widths = [max(map(len, column)) for column in zip(("row", "seed", "state", ""), *lines, strict=True)]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in [("row", "seed", "state", ""), *lines]
        )
