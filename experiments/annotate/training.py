"""Training beside the page: a run of `weakseg fit`, in a process of its own, after so many images are marked done."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from common.training.files import write_json
from experiments.runs.command import PROGRAM, environment

PATIENCE = 10.0  # seconds for a run to save and end


class Training:
    """Rounds of training in `runs/round-1`, `round-2` and so on, each from the weights of the one before.

    Args:
        root: the data folder.
        runs: folder of the rounds, and of what each has printed.
        every: number of images marked done that a round is for.
        words: of `weakseg fit`, without data, run directory and weights. Unless a config is among them, what they leave
            open is chosen from the folder, as by `weakseg fit --data FOLDER`.
        start_from: checkpoint that the first round starts from; None: the last finished round, or `words` alone.
        finished: called with the run directory of each finished round, in the thread of the training.
    """

    def __init__(
        self,
        root: Path,
        runs: Path,
        every: int,
        words: Sequence[str],
        start_from: Path | None,
        finished: Callable[[Path], None],
    ) -> None:
        self.root, self.runs, self.every, self.words, self.finished = root, runs, every, [*words], finished
        ended = [path for path in self.rounds() if (path / "summary.json").is_file()]
        self.weights = ended[-1] / "checkpoints" / "last.ckpt" if ended and not start_from else start_from
        known = ended[-1].with_suffix(".json") if ended else None
        # What was done when the last round began.
        self.known: set[str] = {*json.loads(known.read_text())["done"]} if known and known.exists() else set()
        self.wanted: set[str] | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.said, self.ending = f"trains after {every} more images are done", False
        self.change = threading.Condition()
        # One thread starts all rounds: the kernel ends a run with the thread that started it.
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def rounds(self) -> list[Path]:
        """Run directories of rounds, in order."""
        found = {int(match[1]): path for path in self.runs.glob("*") if (match := _ROUND.fullmatch(path.name))}
        return [found[number] for number in sorted(found)]

    def command(self, run_dir: Path) -> list[str]:
        """The words of the round's `weakseg fit`: the folder that chooses, or data behind the configs, which may name
        others."""
        ends = [at + 2 for at, word in enumerate(self.words) if word == "--config"]
        ends += [at + 1 for at, word in enumerate(self.words) if word.startswith("--config=")]
        at = max(ends, default=0)
        named = ["--data", "Folder", "--data.init_args.root", str(self.root)]
        data = named if ends else ["--data", str(self.root)]
        weights = ["--init_from", str(self.weights)] if self.weights else []
        quiet = ["--trainer.enable_progress_bar", "false"]
        return ["fit", *self.words[:at], *data, *quiet, *self.words[at:], *weights, "--run_dir", str(run_dir)]

    def consider(self, done: Collection[str]) -> None:
        """Begin a round if so many images are done that were not before; while one runs, after it."""
        with self.change:
            if len({*done} - self.known) >= self.every:
                self.wanted = {*done}
                self.change.notify()

    def status(self) -> str:
        """What is told of it in the page."""
        return self.said

    def stop(self) -> None:
        """End a round that runs; it saves what it has first."""
        with self.change:
            self.ending = True
            process = self.process
            self.change.notify()
        if process is None:
            return
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _work(self) -> None:
        while True:
            with self.change:
                while self.wanted is None and not self.ending:
                    self.change.wait()
                if self.ending or self.wanted is None:
                    return
                self.known, self.wanted = self.wanted, None
            try:
                self._round()
            except Exception as error:  # of this round; the thread is there for the next ones
                self.said = f"not trained: {error}"

    def _round(self) -> None:
        rounds = self.rounds()
        number = int(rounds[-1].name.removeprefix("round-")) + 1 if rounds else 1
        run_dir, since = self.runs / f"round-{number}", time.perf_counter()
        log = self.runs / f"round-{number}.log"
        self.runs.mkdir(parents=True, exist_ok=True)
        run_dir.mkdir()  # the number is taken
        write_json(run_dir.with_suffix(".json"), {"done": sorted(self.known)})  # for a page that is opened again
        command = [*PROGRAM, *self.command(run_dir)]
        with log.open("wb") as output, self.change:
            if self.ending:
                return
            # In a session of its own, so that Ctrl-C ends the page, and the page the run.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
                start_new_session=True,
            )
        self.said = f"round {number} is training since {time.strftime('%H:%M')}, {len(self.known)} images were done"
        try:
            status = self.process.wait()
        finally:
            with self.change:
                self.process = None
        if status:
            lines = log.read_text(errors="replace").strip().splitlines() or [f"status {status}"]
            self.said = f"round {number} did not train: {lines[-1]} (all of it in {log})"
            return
        self.weights = run_dir / "checkpoints" / "last.ckpt"
        self.finished(run_dir)
        self.said = f"round {number} was trained in {time.perf_counter() - since:.0f} s"


_ROUND = re.compile(r"round-(\d+)")
