"""A study as its file says it: regimes, seeds, rows, what is searched on val, and the table.

    title: Scribbles and clicks on Weizmann horses
    about: A paragraph for the page.
    regimes:                                  # name: configs, and values laid over them
      scribbles: {configs: [weizmann_scribbles]}
      clicks: {configs: [weizmann_scribbles], set: {data.supervision.kind: points}}
    data: weizmann_horse_db                   # folder below $WEAKSEG_DATA; or {option: path}, as {root: VOC2012, ...}
    weights: mobilenet_v2.safetensors         # file below $WEAKSEG_WEIGHTS; unset, the configs' own weights are taken
    seeds: [0, 1, 2]
    baseline: partial cross entropy           # the row that gains are over
    rows:
      partial cross entropy: {config: supervised}
      dense CRF: {config: crf, set: {model.crf_weight: 1.0}, where: {clicks: {model.crf_weight: 0.5}}}
      + post-processing: {of: partial cross entropy, test: {model.postprocess.kind: dense_crf}}
      all labels: {config: supervised, configs: [all_labels], from: scribbles}
    search:                                   # on val
      dense CRF: {regimes: [scribbles], over: {model.crf_weight: [0.3, 1, 2]}}
    table: {score: last, columns: [score, gain, seeds, interval, gap]}

A row has `config` (its method) and may have `configs` (laid over it), `set` (values), `where` (values in one regime),
`regimes` (those that it is in; all), `from` (its runs are made in this regime and stand in all), `network` (the
network whose score it shows, `network` for `test/miou_network`), or `of` and `test` (another row's runs, tested
otherwise). A search is over the values of `over`, with `seeds` (the study's first); of a row with `of`, it is over its
post-processing, and needs no training.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.compare.columns import find_column, near

STUDIES = Path(__file__).parent
POSTPROCESS = "model.postprocess."
KIND = f"{POSTPROCESS}kind"
ALL_LABELS = "all labels"
KEYS = {"title", "about", "regimes", "data", "weights", "seeds", "baseline", "rows", "search", "table"}
Options = dict[str, Any]  # by name, without the leading dashes


@dataclass(frozen=True)
class Regime:
    configs: tuple[str, ...]
    options: Options


@dataclass(frozen=True)
class Row:
    name: str
    configs: tuple[str, ...]
    options: Options
    where: dict[str, Options]
    regimes: tuple[str, ...]
    made_in: str | None  # the regime whose runs stand in all
    of: str | None
    test: Options
    network: str

    def chosen(self, regime: str) -> Options:
        """The row's own values in a regime."""
        return self.options | self.where.get(regime, {})


@dataclass(frozen=True)
class Search:
    row: str
    regime: str
    over: dict[str, list[Any]]
    seeds: tuple[int, ...]

    def points(self) -> list[Options]:
        """All combinations of the values, the last option changing fastest."""
        return [dict(zip(self.over, point, strict=True)) for point in itertools.product(*self.over.values())]


@dataclass(frozen=True)
class Study:
    name: str
    given: str  # as it was named on the command line
    title: str
    about: str
    regimes: dict[str, Regime]
    data: dict[str, str]  # option of `data` to a path below the data folder
    weights: str | None
    seeds: tuple[int, ...]
    baseline: str
    rows: dict[str, Row]
    searches: tuple[Search, ...]
    score: str  # best or last
    columns: tuple[str, ...]

    def configs(self) -> set[str]:
        """Names of all configs that the study uses."""
        parts = [*(regime.configs for regime in self.regimes.values()), *(row.configs for row in self.rows.values())]
        return {name for part in parts for name in part}


def shipped() -> dict[str, Path]:
    """The studies that come with the project, by name."""
    return {path.stem: path for path in sorted(STUDIES.glob("*.yaml"))}


def read_study(name: str) -> Study:
    """A study by the name of a shipped one, or by its path (a word with `/` or `.yaml`).

    Raises:
        FileNotFoundError: there is none.
        ValueError: it says something that no study does, named with the nearest word.
    """
    is_path = "/" in name or name.endswith((".yaml", ".yml"))
    file = Path(name) if is_path else STUDIES / f"{name}.yaml"
    if not file.is_file():
        told = name if is_path else f"'{name}'{near(name, shipped())}"
        raise FileNotFoundError(f"there is no study {told}: there are {', '.join(shipped())}, or give a file")
    try:
        return build(file.stem, name, yaml.safe_load(file.read_text()))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError) as error:  # `seeds: 3` is no list
        raise ValueError(f"{file}: {error}") from error


def build(name: str, given: str, content: Any) -> Study:
    top = checked("the study", content, KEYS)
    for key in ("title", "regimes", "rows", "baseline"):
        if not top.get(key):
            raise ValueError(f"`{key}` is missing")
    regimes = {one: build_regime(f"regime '{one}'", said) for one, said in checked("regimes", top["regimes"]).items()}
    rows = {one: build_row(one, said, regimes) for one, said in checked("rows", top["rows"]).items()}
    check_tests(rows)
    known("baseline", top["baseline"], rows)
    check_folders(regimes)
    check_folders(rows)
    seeds = tuple(int(seed) for seed in top.get("seeds", [0]))
    if not seeds or len({*seeds}) < len(seeds):
        raise ValueError(f"seeds: some different numbers are needed, got {[*seeds]}")
    table = checked("table", top.get("table"), {"score", "columns"})
    score, columns = table.get("score", "last"), table.get("columns", ["score", "gain", "seeds", "interval"])
    if score not in ("best", "last"):
        raise ValueError(f"table: score is best or last, got {score!r}")
    for column in columns:
        find_column(str(column), score)
    searches = [
        search
        for one, said in checked("search", top.get("search")).items()
        for part in (said if isinstance(said, list) else [said])
        for search in build_searches(one, part, rows, seeds)
    ]
    data, about = top.get("data") or {}, " ".join(str(top.get("about") or "").split())
    paths = {"root": data} if isinstance(data, str) else dict(data)
    return Study(name, given, str(top["title"]), about, regimes, paths, top.get("weights"), seeds, top["baseline"],
                 rows, tuple(searches), score, tuple(columns))  # fmt: skip


def build_regime(where: str, said: Any) -> Regime:
    found = checked(where, said, {"configs", "set"})
    return Regime(names(found, "configs"), options(where, found.get("set")))


def build_row(name: str, said: Any, regimes: Mapping[str, Regime]) -> Row:
    where = f"row '{name}'"
    found = checked(where, said, {"config", "configs", "set", "where", "regimes", "from", "of", "test", "network"})
    test = options(where, found.get("test"))
    if ("of" in found) == ("config" in found):
        raise ValueError(f"{where}: give either `config`, its method, or `of`, the row whose runs it tests otherwise")
    if found.keys() & {"of", "test"} and not {"of", "test"} <= found.keys() <= {"of", "test", "regimes"}:
        raise ValueError(f"{where}: a row with `of` needs `test`, may have `regimes`, and has no runs of its own")
    if "of" in found and (test.get(KIND) in (None, "none") or not all(key.startswith(POSTPROCESS) for key in test)):
        raise ValueError(f"{where}: `test` needs {KIND}, and is about {POSTPROCESS}... alone")
    single = {regime: options(where, values) for regime, values in checked(where, found.get("where")).items()}
    for regime in (*single, *found.get("regimes", []), found.get("from", next(iter(regimes)))):
        known(where, regime, regimes, "regime")
    configs, values = names(found, "config") + names(found, "configs"), options(where, found.get("set"))
    return Row(name, configs, values, single, tuple(found.get("regimes", regimes)), found.get("from"), found.get("of"),
               test, str(found.get("network", "")))  # fmt: skip


def check_tests(rows: Mapping[str, Row]) -> None:
    """Rows with `of` are about a row with runs of its own, which keep one test of each kind of post-processing."""
    seen: dict[tuple[str, str], str] = {}
    for row in rows.values():
        if row.of is not None:
            known(f"row '{row.name}'", row.of, {name: one for name, one in rows.items() if one.of is None})
            kind = row.test[KIND]
            if (other := seen.setdefault((row.of, kind), row.name)) != row.name:
                both = f"rows '{other}' and '{row.name}' both test '{row.of}' with {kind}"
                raise ValueError(f"{both}: a run keeps one such test")


def build_searches(name: str, said: Any, rows: Mapping[str, Row], seeds: tuple[int, ...]) -> list[Search]:
    where = f"search '{name}'"
    known("search", name, rows)
    found = checked(where, said, {"regimes", "over", "seeds"})
    row, over = rows[name], options(where, found.get("over"))
    if not over:
        raise ValueError(f"{where}: `over` is missing, the options and the values to try")
    stated = row.options.keys() | row.test.keys() | {key for values in row.where.values() for key in values}
    for key, values in over.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{where}: {key} needs a list of values, got {values!r}")
        if key.startswith(POSTPROCESS) != (row.of is not None):
            means = "post-processing alone" if row.of else "what is trained, not post-processing"
            raise ValueError(f"{where}: row '{name}' is searched over {means}, got {key}")
        if key not in stated:
            raise ValueError(f"{where}: row '{name}' does not say what was chosen for {key}")
    for key, other in ((key, other) for key in over for other in stated if other != key):
        if key.rpartition(".")[2] == other.rpartition(".")[2]:
            raise ValueError(f"{where}: {key} and {other} end alike, as the folders of their runs would: state one")
    regimes = (row.made_in,) if row.made_in else row.regimes
    for regime in found.get("regimes", []):
        known(where, regime, regimes, "regime")
    return [
        Search(name, regime, over, tuple(found.get("seeds", seeds[:1]))) for regime in found.get("regimes", regimes)
    ]


def checked(where: str, said: Any, allowed: Iterable[str] = ()) -> dict[str, Any]:
    """A mapping, of nothing but the allowed keys if there are some."""
    if not isinstance(said or {}, dict):
        raise ValueError(f"{where} must hold `key: value` pairs, got {said!r}")
    for key in (said or {}) if allowed else ():
        if key not in allowed:
            raise ValueError(f"{where} has no `{key}`{near(key, allowed)}: there are {', '.join(sorted(allowed))}")
    return {str(key): value for key, value in (said or {}).items()}


def known(where: str, name: Any, names: Iterable[str], kind: str = "row") -> None:
    if name not in names:
        raise ValueError(f"{where}: there is no {kind} '{name}'{near(str(name), names)}: there are {'; '.join(names)}")


def options(where: str, said: Any) -> Options:
    """Options by their whole names; where they are is part of a run, the seed is the study's."""
    found = checked(where, said)
    for key in found:
        if key.split(".")[0] in ("seed_everything", "run_dir", "name", "resume", "overwrite", "init_from", "config"):
            raise ValueError(f"{where}: `{key}` is no value of a row: the study gives it")
    return found


def names(found: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """One name, or a list of them."""
    said = found.get(key, ())
    return (said,) if isinstance(said, str) else tuple(said)


def folder_name(name: str) -> str:
    """A name as a folder's: `1/8, dense` becomes `1_8_dense`."""
    return re.sub(r"[^\w.+=-]+", "_", name).strip("_.") or "_"


def check_folders(names: Iterable[str]) -> None:
    taken = {"search": "search"}
    for name in names:
        if (other := taken.setdefault(folder_name(name).lower(), name)) != name or name == "search":
            raise ValueError(f"'{name}' and '{other}' would share a folder: rename one of them")
