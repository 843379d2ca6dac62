"""Which runs a study consists of: their folders, and the commands that are still to be run for each."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.training.files import plain_yaml, read_summary
from experiments.compare.protocol import flatten, text
from experiments.compare.runs import read_images
from experiments.studies.spec import KIND, POSTPROCESS, Options, Row, Search, Study, folder_name, known

DATA, WEIGHTS = "WEAKSEG_DATA", "WEAKSEG_WEIGHTS"
QUIET = "--trainer.enable_progress_bar=false"
# Options that say where and how fast a run is made: they change nothing in it.
PLACES = ("data.num_workers", "data.cache", "model.network.weights", "trainer.devices", "trainer.accelerator",
          "trainer.strategy", "trainer.num_nodes", "trainer.enable_", "wandb", "tensorboard")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Args:
        name: as it is given to `--row`.
        folder: its run directory.
        fit: arguments of `weakseg fit`, without those about the directory.
        tests: by the name of a test (`last`, `last+dense_crf`), the options of `weakseg test`; none for a search.
        metrics: columns of the table that `weakseg test` measures when it is asked to, such as `test/dice`.
    """

    name: str
    regime: str
    row: str
    seed: int
    folder: Path
    fit: tuple[str, ...]
    tests: Mapping[str, Options]
    metrics: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").exists()

    def missing(self) -> list[list[str]]:
        """Arguments of the commands that are still to be run, in order.

        Raises:
            ValueError: the directory holds a run with other options.
        """
        check_options(self)
        fit = ["fit", *self.fit, "--run_dir", str(self.folder), "--resume", "auto", QUIET]
        commands = [] if self.finished else [fit]
        asked = ["--metrics", *dict.fromkeys(map(metric_of, self.metrics))] if self.metrics else []
        for name, options in self.tests.items():
            if commands or not is_tested(self, name, options):
                which = name.partition("+")[0]
                words = [*as_words(options), QUIET, *asked]
                commands.append(["test", "--run", str(self.folder), "--which", which, *words])
        return commands


@dataclass(frozen=True)
class Place:
    """Where a study's files are, and what every run is told beside the study.

    Args:
        runs: folder of all studies' runs.
        data: folder that holds the data sets.
        weights: folder that holds the files of weights; None: the configs' own weights are taken.
        extra: further arguments of `weakseg fit`.
    """

    runs: Path
    data: Path
    weights: Path | None
    extra: tuple[str, ...] = ()


def find_place(runs: Path, data: Path | None, weights: Path | None, extra: Sequence[str] = ()) -> Place:
    """`data` and `weights` are given, or the environment's."""
    given = weights or os.environ.get(WEIGHTS)
    return Place(runs, data or Path(os.environ.get(DATA, "data")), Path(given) if given else None, joined(extra))


def joined(words: Sequence[str]) -> tuple[str, ...]:
    """`--name value` as `--name=value`."""
    found: list[str] = []
    for one in words:
        if found and found[-1].startswith("--") and "=" not in found[-1] and not one.startswith("--"):
            found[-1] += f"={one}"
        else:
            found.append(one)
    return tuple(found)


def check_place(study: Study, place: Place) -> None:
    """Before anything is trained.

    Raises:
        FileNotFoundError: data or weights that the study needs are not there.
        ModuleNotFoundError: a column needs MONAI.
    """
    if metrics := further_metrics(study):
        from common.training.test_metrics import TestMetrics

        TestMetrics([*map(metric_of, metrics)])
    for path in study.data.values():
        if not (place.data / path).exists():
            raise FileNotFoundError(
                f"{study.name} needs {place.data / path}: set ${DATA} to the folder that holds {path}, or give it as "
                "--data DIR"
            )
    if study.weights and place.weights and not (place.weights / study.weights).is_file():
        raise FileNotFoundError(
            f"{study.name} needs {place.weights / study.weights}: set ${WEIGHTS} to the folder that holds it, or unset "
            "it to take the weights that the configs name"
        )


# Words of commands -------------------------------------------------------------------------------------------------


def word(value: Any) -> str:
    """A value as a command's word, in YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def as_words(options: Mapping[str, Any]) -> list[str]:
    return [f"--{name}={word(value)}" for name, value in options.items()]


def fit_words(study: Study, place: Place, regime: str, row: Row, values: Options, seed: int) -> tuple[str, ...]:
    """Arguments of `weakseg fit`: the regime's, data and weights, the row's, seed, and what every run is told. A later
    word overrides an earlier one, so that a row may lay a config over a regime's values."""
    told = study.regimes[regime]
    words = with_configs(told.configs)
    words += [f"--data.{option}={place.data / path}" for option, path in study.data.items()]
    if study.weights and place.weights:
        words.append(f"--model.network.weights={place.weights / study.weights}")
    words += [*as_words(told.options), *with_configs(row.configs), *as_words(values)]
    return (*words, f"--seed_everything={seed}", *place.extra)


def with_configs(names: Iterable[str]) -> list[str]:
    return [word for name in names for word in ("--config", name)]


# Runs --------------------------------------------------------------------------------------------------------------


def row_run(study: Study, place: Place, regime: str, row: Row, seed: int) -> Run:
    """The run of a row; where a search of the row has tried the row's own values, it is that run."""
    row = study.rows[row.of] if row.of else row
    regime = row.made_in or regime
    if found := tried(study, row, regime, seed):
        return search_run(study, place, *found, seed)
    folder = place.runs / study.name / folder_name(regime) / folder_name(row.name) / f"seed{seed}"
    words = fit_words(study, place, regime, row, row.chosen(regime), seed)
    name = f"{regime}/{row.name}"
    return Run(name, regime, row.name, seed, folder, words, tests(study, row), further_metrics(study))


def tried(study: Study, row: Row, regime: str, seed: int) -> tuple[Search, Options] | None:
    """The first search that tries the row's own values in a regime, and these among its points."""
    for search in study.searches:
        if (search.row, search.regime) == (row.name, regime) and seed in search.seeds:
            for point in search.points():
                if is_chosen(point, row.chosen(regime)):
                    return search, point
    return None


def search_run(study: Study, place: Place, search: Search, point: Options, seed: int) -> Run:
    row = study.rows[search.row]
    if is_chosen(point, row.chosen(search.regime)) and (found := tried(study, row, search.regime, seed)):
        search, point = found  # several searches of a row share the run with its own values
    values = row.chosen(search.regime) | point
    label = ",".join(f"{name.rsplit('.', 1)[-1]}={word(value)}" for name, value in point.items())
    parts = (study.name, "search", folder_name(search.regime), folder_name(row.name), folder_name(label), f"seed{seed}")
    chosen = is_chosen(point, row.chosen(search.regime)) and seed in study.seeds
    words = fit_words(study, place, search.regime, row, values, seed)
    name = f"{search.regime}/{row.name}" + ("" if chosen else f", {label}")
    shown = tests(study, row) if chosen else {}  # nothing is chosen on test: the others are never tested
    folder = place.runs.joinpath(*parts)
    return Run(name, search.regime, row.name, seed, folder, words, shown, further_metrics(study))


def is_chosen(point: Options, values: Options) -> bool:
    return all(name in values and text(values[name]) == text(value) for name, value in point.items())


def tests(study: Study, row: Row) -> dict[str, Options]:
    """What a row's runs are tested with: the checkpoints that the table shows, plain and as rows `of` it say."""
    shown = {study.score, *(name for name in study.columns if name in ("best", "last"))}
    found: dict[str, Options] = {which: {} for which in ("last", "best") if which in shown}
    for other in study.rows.values():
        if other.of == row.name:
            kind = other.test[KIND]
            found |= {f"{which}+{kind}": other.test for which in ("last", "best") if which in shown}
    return found


def further_metrics(study: Study) -> tuple[str, ...]:
    """The columns of a study's table that `weakseg test` does not measure by itself."""
    from common.training.test_metrics import METRICS

    return tuple(name for name in study.columns if name.startswith("test/") and metric_of(name) in METRICS)


def metric_of(column: str) -> str:
    """What `weakseg test --metrics` calls a column: `hd95` for `test/hd95_mm/LV`."""
    return column.split("/")[1].removesuffix("_mm")


def all_runs(study: Study, place: Place) -> list[Run]:
    """Every run once: searches first, because rows take their values; then row by row, all regimes and seeds."""
    found: dict[Path, Run] = {}
    for search in study.searches:
        if study.rows[search.row].of is None:
            for point in search.points():
                for seed in search.seeds:
                    run = search_run(study, place, search, point, seed)
                    found.setdefault(run.folder, run)
    for row in study.rows.values():
        for regime in row.regimes:
            for seed in study.seeds:
                run = row_run(study, place, regime, row, seed)
                found.setdefault(run.folder, run)
    return [*found.values()]


def settings_to_try(study: Study, place: Place) -> dict[Path, list[Options]]:
    """What is scored on val, by the directory of a finished run: post-processing of rows and of searches."""
    found: dict[Path, list[Options]] = {}
    for row in study.rows.values():
        for regime, seed in itertools.product(row.regimes, study.seeds) if row.of is not None else ():
            found.setdefault(row_run(study, place, regime, row, seed).folder, []).append(row.test)
    for search in study.searches:
        row = study.rows[search.row]
        for seed in search.seeds if row.of is not None else ():
            folder = row_run(study, place, search.regime, row, seed).folder
            found.setdefault(folder, []).extend(row.test | point for point in search.points())
    return found


def named_rows(study: Study) -> dict[str, tuple[str, Row]]:
    """`REGIME/ROW` of every row that has runs of its own."""
    return {
        f"{regime}/{row.name}": (regime, row)
        for row in study.rows.values()
        if row.of is None
        for regime in ((row.made_in,) if row.made_in else row.regimes)
    }


def find_run(study: Study, place: Place, name: str, seed: int) -> Run:
    """The run that `--row REGIME/ROW --seed SEED` names; the regime may be left out where there is one.

    Raises:
        ValueError: there is no such row.
    """
    rows = named_rows(study)
    if len(study.regimes) == 1 and name not in rows:
        name = f"{next(iter(study.regimes))}/{name}"
    known(study.name, name, rows)
    return row_run(study, place, *rows[name], seed)


# What is done ------------------------------------------------------------------------------------------------------


def is_tested(run: Run, name: str, options: Options) -> bool:
    """Whether `weakseg test` has measured this, with these options."""
    found, images = read_summary(run.folder).get("test", {}), run.folder / f"test_{name}_images.npz"
    if name not in found or not found[name].keys() >= {*run.metrics}:
        return False
    if not options or not images.exists():  # not written where phases are matched to classes
        return True
    used = json.loads(read_images(images).evaluation)["postprocess"]
    return all(text(used.get(key.removeprefix(POSTPROCESS))) == text(value) for key, value in options.items())


def check_options(run: Run) -> None:
    """Whether the run in the folder, if there is one, has the options that it is to have. It never happens unless a
    study is changed after its runs were made.

    Raises:
        ValueError: it has others.
    """
    file = run.folder / "config.yaml"
    if not file.exists():
        return
    try:
        content = plain_yaml(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{file} is broken ({' '.join(str(error).split())[:100]}): remove {run.folder}") from error
    found = {short(name): value for name, value in flatten(content).items()}
    for name, value in stated(run.fit).items():
        if name in found and not same(found[name], value) and not name.startswith(PLACES):
            raise ValueError(
                f"{run.folder} holds a run with {name} {text(found[name])}, the study says {text(value)}: remove that "
                "folder to make the run again, or choose another --runs"
            )


def stated(words: Sequence[str]) -> Options:
    """What the options of a command say. A config that follows another one directly (`configs` of a row) may override
    all that comes before it, of which nothing is kept."""
    found: dict[str, Any] = {}
    for at, one in enumerate(words):
        name, sign, said = one.partition("=")
        if one == "--config" and at > 1 and words[at - 2] == "--config":
            found.clear()
        elif sign:
            found[short(name.removeprefix("--"))] = plain(said)
    return found


def plain(said: str) -> Any:
    try:
        return yaml.safe_load(said)
    except yaml.YAMLError:  # `@x`: a word
        return said


def short(name: str) -> str:
    return name.replace(".init_args.", ".")


def same(one: Any, other: Any) -> bool:
    """Whether two values mean the same: numbers however they are written, paths wherever they lead to."""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        paths = isinstance(one, str) and isinstance(other, str)
        return Path(one).name == Path(other).name if paths else text(one) == text(other)
