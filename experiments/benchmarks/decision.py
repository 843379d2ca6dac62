"""README's table "Which method for which labels", from the studies.

    python -m experiments.benchmarks.decision

`experiments/results/decision.yaml` lists what somebody has, in the order of the table: with the regimes of studies that
tell of it (`NAME/REGIME`), or, until there is such a study, with what is said by hand. Of a study the row is taken that
is best on val; figures, also those of rows that lose against the baseline, are of test. Rows of fewer runs than the
baseline's are left out: another seed may label other images, and its score says less of the method than of these.
"""

from __future__ import annotations

import csv
from pathlib import Path

import yaml

from experiments.compare.columns import markdown
from experiments.compare.report import fill
from experiments.studies.plan import as_words
from experiments.studies.spec import ALL_LABELS, Row, Study, read_study

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
Found = dict[str, str]  # a line of a csv


def decision_table(results: Path = RESULTS) -> str:
    """The table as Markdown, with links from the project's root.

    Raises:
        ValueError: a study's csv lacks a regime, or the scores on val of some row.
    """
    lines = []
    for entry in yaml.safe_load((results / "decision.yaml").read_text()):
        if "studies" in entry:
            told = [of_study(name, results) for name in entry["studies"]]
            taken = " or ".join(dict.fromkeys(take for take, _ in told))
            lines.append([entry["have"], taken, ". ".join(why for _, why in told)])
        else:
            lines.append([entry["have"], entry["take"], entry["why"]])
    return markdown(["you have", "take", "why"], lines).replace("---:", "---")


def of_study(place: str, results: Path) -> tuple[str, str]:
    """The row to take, with its options, and why, of a regime of a study, `NAME/REGIME`."""
    name, _, regime = place.partition("/")
    study = read_study(name)
    with (results / f"{name}.csv").open(newline="") as file:
        rows = {row["row"]: row for row in csv.DictReader(file) if row["regime"] == regime}
    least = max(1, int(rows.get(study.baseline, {}).get("n", 0)))
    rows = {row: found for row, found in rows.items() if int(found["n"]) >= least}
    key, test = f"val_miou_{study.score}", f"test_miou_{study.score}"
    missing = [row for row, found in rows.items() if not found.get(key)]
    if missing or study.baseline not in rows:
        raise ValueError(f"{name}.csv has no {key} of {', '.join(missing or [study.baseline])} in {regime}")
    ranked = sorted((row for row in rows if row != ALL_LABELS), key=lambda row: -float(rows[row][key]))
    best, base = ranked[0], study.baseline
    if best == base:
        parts = [f"{base} {shown(rows[base], test)}, which nothing here beats on val"]
    else:
        parts = [f"{base} {shown(rows[base], test)}, {best} **{shown(rows[best], test)}**{share(rows[best], study)}"]
        others = [row for row in ranked[1:3] if row != base]
        parts += [f"then {', '.join(f'{row} {shown(rows[row], test)}' for row in others)}"] if others else []
    if ALL_LABELS in rows:
        parts.append(f"all labels {shown(rows[ALL_LABELS], test)}")
    lost = [row for row in ranked if loses(rows[row], study)]
    if lost:
        told = ", ".join(f"{row} {float(rows[row][f'gain_{study.score}']):+.1f}" for row in lost)
        parts.append(f"not: {told}")
    why = f"[{study.title}](experiments/results/{name}.md): {'; '.join(parts)}"
    return f"{best}: {command(study, study.rows[best], regime)}", why


def shown(found: Found, key: str) -> str:
    return f"{float(found[key]):.1f}"


def share(found: Found, study: Study) -> str:
    gap = found.get(f"gap_{study.score}")
    return f" ({float(gap):.0%} of the gap)" if gap else ""


def loses(found: Found, study: Study) -> bool:
    """Whether a row is below the baseline whatever test images are drawn."""
    high = found.get(f"gain_{study.score}_images_high")
    return float(high or 0) < 0


def command(study: Study, row: Row, regime: str) -> str:
    """The options of `weakseg fit`, and of test and predict where the row is another one's post-processing."""
    made = study.rows[row.of] if row.of else row
    words = [*(f"--config {name}" for name in made.configs), *as_words(made.chosen(regime)), *as_words(row.test)]
    return f"`{' '.join(words)}`"


if __name__ == "__main__":
    fill(ROOT / "README.md", "decision", decision_table())
