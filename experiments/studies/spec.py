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

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.compare.columns import find_column

STUDIES = Path(__file__).parent
POSTPROCESS = "model.postprocess."
ALL_LABELS = "all labels"
KEYS = {"title", "about", "regimes", "data", "weights", "seeds", "baseline", "rows", "search", "table"}
Options = dict[str, Any]  # by name, without the leading dashes


@dataclass(frozen=True)
class Regime:
    name: str
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

    def of_regime(self, regime: str) -> list[Row]:
        return [row for row in self.rows.values() if regime in row.regimes]

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
    file = Path(name) if is_path else shipped().get(name)
    if file is None:
        raise FileNotFoundError(f"there is no study '{name}'{near(name, shipped())}: there are {', '.join(shipped())}")
    if not file.is_file():
        raise FileNotFoundError(f"there is no study {file}: there are {', '.join(shipped())}, or give a file")
    try:
        content = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return build(file.stem, str(file) if is_path else name, content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def near(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, [*known], 1)
    return f", nearest: {found[0]}" if found else ""


def build(name: str, given: str, content: Any) -> Study:
    top = checked("the study", content, KEYS)
    for key in ("title", "regimes", "rows", "baseline"):
        if not top.get(key):
            raise ValueError(f"`{key}` is missing")
    regimes = {one: build_regime(one, said) for one, said in mapping("regimes", top["regimes"]).items()}
    rows = {one: build_row(one, said, regimes) for one, said in mapping("rows", top["rows"]).items()}
    for row in rows.values():
        check_of(row, rows)
    known("baseline", top["baseline"], rows)
    for names in (regimes, rows):
        check_folders([*names])
    check_refinements(rows)
    seeds = tuple(int(seed) for seed in top.get("seeds", [0]))
    if not seeds or len({*seeds}) < len(seeds):
        raise ValueError(f"seeds: some different numbers are needed, got {[*seeds]}")
    table = checked("table", top.get("table") or {}, {"score", "columns"})
    score = table.get("score", "last")
    if score not in ("best", "last"):
        raise ValueError(f"table: score is best or last, got {score!r}")
    columns = tuple(table.get("columns", ["score", "gain", "seeds", "interval"]))
    for column in columns:
        find_column(str(column), score)
    searches = [
        search
        for one, said in mapping("search", top.get("search") or {}).items()
        for part in (said if isinstance(said, list) else [said])
        for search in build_searches(one, part, rows, regimes, seeds)
    ]
    data = top.get("data") or {}
    return Study(
        name, given, str(top["title"]), " ".join(str(top.get("about") or "").split()), regimes,
        {"root": data} if isinstance(data, str) else dict(data), top.get("weights"), seeds, top["baseline"], rows,
        tuple(searches), score, columns,
    )  # fmt: skip


def build_regime(name: str, said: Any) -> Regime:
    found = checked(f"regime '{name}'", said, {"configs", "set"})
    return Regime(name, as_names(found.get("configs")), options(f"regime '{name}'", found.get("set")))


def build_row(name: str, said: Any, regimes: Mapping[str, Regime]) -> Row:
    where = f"row '{name}'"
    found = checked(where, said, {"config", "configs", "set", "where", "regimes", "from", "of", "test", "network"})
    if ("of" in found) == ("config" in found):
        raise ValueError(f"{where}: give either `config`, its method, or `of`, the row whose runs it tests otherwise")
    if "of" in found and found.keys() - {"of", "test", "regimes"}:
        raise ValueError(f"{where}: a row with `of` has no runs of its own, so only `test` and `regimes` beside it")
    if ("of" in found) != ("test" in found):
        raise ValueError(f"{where}: `of` and `test` belong together")
    test = options(where, found.get("test"))
    if strange := [key for key in test if not key.startswith(POSTPROCESS)]:
        raise ValueError(f"{where}: `test` is about {POSTPROCESS}..., not {', '.join(strange)}")
    if "of" in found and test.get(f"{POSTPROCESS}kind") in (None, "none"):
        raise ValueError(f"{where}: `test` needs {POSTPROCESS}kind")
    single = mapping(f"{where}: where", found.get("where") or {})
    for regime in (*single, *found.get("regimes", []), *([found["from"]] if "from" in found else [])):
        known(where, regime, regimes, "regime")
    return Row(
        name,
        (*as_names(found.get("config")), *as_names(found.get("configs"))),
        options(where, found.get("set")),
        {regime: options(where, values) for regime, values in single.items()},
        tuple(found.get("regimes", regimes)),
        found.get("from"),
        found.get("of"),
        test,
        str(found.get("network", "")),
    )


def check_of(row: Row, rows: Mapping[str, Row]) -> None:
    if row.of is not None:
        known(f"row '{row.name}'", row.of, rows)
        if rows[row.of].of is not None:
            raise ValueError(f"row '{row.name}': '{row.of}' has no runs of its own: give '{rows[row.of].of}'")


def check_refinements(rows: Mapping[str, Row]) -> None:
    """A run keeps one test of each kind of post-processing."""
    seen: dict[tuple[str, str], str] = {}
    for row in rows.values():
        if row.of is not None:
            key = (row.of, row.test[f"{POSTPROCESS}kind"])
            if key in seen:
                raise ValueError(
                    f"rows '{seen[key]}' and '{row.name}' both test '{row.of}' with {key[1]}: a run keeps one such test"
                )
            seen[key] = row.name


def build_searches(
    name: str, said: Any, rows: Mapping[str, Row], regimes: Mapping[str, Regime], seeds: tuple[int, ...]
) -> list[Search]:
    where = f"search '{name}'"
    known("search", name, rows)
    found = checked(where, said, {"regimes", "over", "seeds"})
    row = rows[name]
    over = mapping(f"{where}: over", found.get("over"))
    for key, values in over.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{where}: {key} needs a list of values, got {values!r}")
        if key.startswith(POSTPROCESS) != (row.of is not None):
            means = "post-processing alone" if row.of else "what is trained, not post-processing"
            raise ValueError(f"{where}: row '{name}' is searched over {means}, got {key}")
    options(where, over)
    stated = row.options.keys() | row.test.keys() | {key for values in row.where.values() for key in values}
    if unstated := [key for key in over if key not in stated]:
        raise ValueError(f"{where}: row '{name}' does not say what was chosen for {', '.join(unstated)}")
    for regime in found.get("regimes", []):
        known(where, regime, {one: regimes[one] for one in row.regimes}, "regime")
    if row.made_in and found.get("regimes", [row.made_in]) != [row.made_in]:
        raise ValueError(f"{where}: the runs of '{name}' are made in '{row.made_in}' alone")
    chosen = [row.made_in] if row.made_in else found.get("regimes", row.regimes)
    return [Search(name, regime, over, tuple(found.get("seeds", seeds[:1]))) for regime in chosen]


def checked(where: str, said: Any, allowed: set[str]) -> dict[str, Any]:
    found = mapping(where, said)
    for key in found:
        if key not in allowed:
            raise ValueError(f"{where} has no `{key}`{near(key, allowed)}: there are {', '.join(sorted(allowed))}")
    return found


def mapping(where: str, said: Any) -> dict[str, Any]:
    if not isinstance(said, dict):
        raise ValueError(f"{where} must hold `key: value` pairs, got {said!r}")
    return {str(key): value for key, value in said.items()}


def known(where: str, name: Any, names: Mapping[str, Any], kind: str = "row") -> None:
    if name not in names:
        raise ValueError(f"{where}: there is no {kind} '{name}'{near(str(name), names)}: there are {'; '.join(names)}")


def options(where: str, said: Any) -> Options:
    """Options by their whole names; where they are is part of a run, the seed is the study's."""
    found = mapping(where, said or {})
    for key in found:
        if key.split(".")[0] in ("seed_everything", "run_dir", "name", "resume", "overwrite", "init_from", "config"):
            raise ValueError(f"{where}: `{key}` is no value of a row: the study gives it")
    return found


def as_names(said: Any) -> tuple[str, ...]:
    return () if said is None else (said,) if isinstance(said, str) else tuple(said)


def folder_name(name: str) -> str:
    """A name as a folder's: `1/8, dense` becomes `1_8_dense`."""
    return re.sub(r"[^\w.+=-]+", "_", name).strip("_.") or "_"


def check_folders(names: Iterable[str]) -> None:
    taken: dict[str, str] = {}
    for name in names:
        folder = folder_name(name).lower()
        if folder in taken or folder == "search":
            raise ValueError(f"'{name}' and '{taken.get(folder, 'search')}' would share a folder: rename one of them")
        taken[folder] = name
