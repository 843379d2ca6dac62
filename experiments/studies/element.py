"""One run of a study as a job: it saves when it is asked to stop, and is queued again.

This module imports next to nothing: a job can be asked to stop in its first seconds, and hears it only once Python has
read the element.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

from common.training.signals import die_with_parent

if TYPE_CHECKING:
    from experiments.studies.plan import Run

PATIENCE = 60.0  # seconds in which a process that made the run before must have ended
# What a command ends with that was asked to stop: after it has saved, or while Python was still starting.
TO_BE_CONTINUED = (os.EX_TEMPFAIL, *(-one for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)))


class Element:
    """One run as a job. Asked to stop, its command saves; the job is then queued again and goes on from there. That is
    submitit's hook for what it calls a checkpoint: it catches SIGUSR2, calls `checkpoint`, and requeues.

    Args:
        run: the run, its tests included.
        which: the checkpoint whose post-processing is searched.
        settings: what the search tries.
        minutes: the job's time limit.
        attempts: times that it may be reached without a step more than the time before; preemptions are not counted.
        cpus: threads of a command.
    """

    def __init__(
        self, run: Run, which: str, settings: Sequence[dict[str, Any]], minutes: int, attempts: int, cpus: int
    ) -> None:
        self.told, self.folder = dict(vars(run)), run.folder  # plain values, see above
        self.which, self.settings = which, settings
        self.minutes, self.attempts, self.cpus = minutes, attempts, cpus
        self.steps = self.without_progress = 0
        self.process: int | None = None
        self.started = 0.0

    def __call__(self) -> None:
        self.started = time.monotonic()
        from experiments.studies.plan import Run
        from experiments.studies.runner import claimed

        run = Run(**self.told)
        with claimed(self.folder, patience=PATIENCE) as log:
            if log is None:
                raise FileExistsError(f"another process makes {self.folder}")
            for words in run.missing():
                if status := self.call(words, log):
                    self.leave(status)
            if self.settings:
                from experiments.studies.postprocess import score_settings

                score_settings(self.folder, self.which, self.settings)

    def call(self, words: Sequence[str], log: IO[str]) -> int:
        """A command as a process of its own, which ends with this one, however that comes, and which Lightning does not
        take for a task of SLURM's: it starts the processes of further GPUs by itself."""
        from experiments.runs.command import PROGRAM, environment

        its = {name: value for name, value in environment().items() if not name.startswith("SLURM_")}
        its.setdefault("OMP_NUM_THREADS", str(self.cpus))
        process = subprocess.Popen(
            [*PROGRAM, *words], stdout=log, stderr=subprocess.STDOUT, env=its, preexec_fn=die_with_parent
        )
        self.process = process.pid
        try:
            return process.wait()
        finally:
            self.process = None

    def leave(self, status: int) -> None:
        """Raise for a command that failed; be queued again for one that is to be continued."""
        if status in TO_BE_CONTINUED and not is_cancelled():
            import submitit

            os.kill(os.getpid(), submitit.JobEnvironment._usr_sig())  # its handler does not come back
        from experiments.studies.runner import last_line, log_file

        raise RuntimeError(f"{last_line(log_file(self.folder))} (status {status})")

    def checkpoint(self) -> Any:
        """What is queued in this job's place, or None; called by the handler of a signal, which the command got too."""
        if self.process is not None:
            os.kill(self.process, signal.SIGTERM)
            # Popen.wait may hold its lock below this handler: the process is left for it to collect.
            os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOWAIT)
            self.process = None
        from experiments.studies.runner import steps_done

        steps, _ = steps_done(self.folder)
        if steps > self.steps:
            self.without_progress = 0
        elif time.monotonic() - self.started >= 0.8 * 60 * self.minutes:  # else it was preempted
            self.without_progress += 1
        self.steps = steps
        if self.without_progress >= self.attempts:
            print(f"given up: {self.without_progress} time limits passed without a step: set a longer one", flush=True)
            return None
        import submitit

        return submitit.core.utils.DelayedSubmission(self)


def is_cancelled() -> bool:
    """Whether this process is in a job of SLURM that has been cancelled; a preempted one still runs."""
    job = os.environ.get("SLURM_JOB_ID")
    try:
        return job is not None and slurm_states([job]).get(job) != "RUNNING"
    except OSError:  # SLURM is busy: better queued again than lost
        return False


def slurm_states(jobs: Sequence[str]) -> dict[str, str]:
    """The states of jobs, and of elements of arrays (`12_3`), by id; without those that SLURM has forgotten.

    Raises:
        OSError: SLURM does not answer.
    """
    if not jobs:
        return {}
    arrays = ",".join(dict.fromkeys(job.partition("_")[0] for job in jobs))
    words = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%A|%T", f"--jobs={arrays}"]
    try:
        told = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise OSError(f"SLURM does not answer: {error}") from error
    if told.returncode and "Invalid job id" not in told.stderr:
        raise OSError(f"SLURM does not answer: {told.stderr.strip() or told.returncode}")
    lines = [line.split("|") for line in told.stdout.splitlines()]
    return {name: state for one, raw, state in lines for name in (one, raw)}
