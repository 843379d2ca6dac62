"""The result pages: every number that was ever recorded stays as it is, on its page and as csv."""

import csv
import hashlib
import re

import pytest

from conftest import ROOT

RESULTS = ROOT / "experiments" / "results"
RECORDED = RESULTS / "recorded"
BLOCK = re.compile(r"<!-- ([^/\n]+?) -->\n(.*?)\n<!-- /\1 -->", re.S)
TABLES = sorted(path.relative_to(RECORDED).with_suffix("").as_posix() for path in RECORDED.glob("*/*.csv"))


def read(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def blocks(page):
    return {name.replace(" ", "_"): content for name, content in BLOCK.findall(page.read_text())}


def cells(content):
    lines = [line for line in content.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for place, line in enumerate(lines) if place != 1]


def test_the_recorded_numbers_are_those_that_were_measured():
    """The runs behind them are gone: if this fails, restore the csv files, do not change the hash. A table that is
    measured again becomes a study's page, and leaves this folder together with its old page."""
    content = b"".join(path.read_bytes() for path in sorted(RECORDED.rglob("*.csv")))
    assert hashlib.sha256(content).hexdigest()[:16] == "61517ce5e62e57f9"
    assert len(TABLES) == 27


@pytest.mark.parametrize("name", TABLES)
def test_a_page_shows_its_recorded_table_cell_by_cell(name):
    page, table = name.split("/")
    assert cells(blocks(RESULTS / f"{page}.md")[table]) == read(RECORDED / f"{name}.csv")


def test_every_table_of_a_recorded_page_is_recorded():
    for page in {name.split("/")[0] for name in TABLES}:
        text = (RESULTS / f"{page}.md").read_text()
        shown = {name for name, content in blocks(RESULTS / f"{page}.md").items() if "|" in content}
        assert {f"{page}/{name}" for name in shown} <= {*TABLES}
        outside = BLOCK.sub("", text)
        assert not [line for line in outside.splitlines() if line.startswith("|")], (
            f"{page}.md: a table without markers"
        )


def test_the_index_says_where_each_recorded_table_comes_from():
    head, *rows = read(RECORDED / "index.csv")
    assert head == ["table", "since commit", "runs"]
    assert sorted(row[0] for row in rows) == TABLES
    for table, commit, runs in rows:
        assert re.fullmatch("[0-9a-f]{7}", commit)
        page, name = table.split("/")
        about = blocks(RESULTS / f"{page}.md")
        assert runs in ("", about.get(f"{name}_runs"), about.get("runs"))


def test_the_first_table_of_readme_is_that_of_the_study_that_the_demo_shows():
    head, *rows = read(RESULTS / "hearts.csv")
    found = [dict(zip(head, row, strict=True)) for row in rows]
    of = {row["row"]: f"{float(row['test_miou_last']):.1f} ± {float(row['test_miou_last_sd']):.1f}" for row in found}
    names = ("partial cross entropy", "+ MRF", "TV", "level set", "Gated CRF", "all labels")
    assert cells((ROOT / "README.md").read_text().split("`make test` runs")[0])[1] == [of[name] for name in names]


def test_readme_has_the_figures_of_the_strokes_of_experts():
    head, *rows = read(RESULTS / "acdc_scribbles.csv")
    found = {row["row"]: row for row in (dict(zip(head, one, strict=True)) for one in rows)}
    line = next(one for one in (ROOT / "README.md").read_text().splitlines() if one.startswith("| ACDC hearts"))
    shown = dict(re.findall(r"(\+ MRF|TV|level set|Gated CRF) (\d\d\.\d)", line))
    shown["partial cross entropy"], shown["all labels"] = (cells(line)[0][place] for place in (1, -1))
    assert len(shown) == 6
    assert shown == {row: f"{float(found[row]['test_miou_last']):.1f}" for row in shown}
    assert {found[row]["n"] for row in shown} == {"3"}


def test_readme_has_the_figures_of_the_tags_of_voc():
    head, *rows = read(RESULTS / "tags.csv")
    found = {}
    for row in (dict(zip(head, one, strict=True)) for one in rows):
        if row["score"] == "network on test":
            found.setdefault((row["what"], row["labels"]), []).append(float(row["percent"]))
    line = next(one for one in (ROOT / "README.md").read_text().splitlines() if one.startswith("| VOC, local"))
    names = [("CAM", "all scales, mirrored"), ("CAM", "PAMR"), ("CAM", "walk"), ("all masks", "")]
    assert [len(found[name]) for name in names] == [2, 2, 2, 2]
    assert re.findall(r"\d\d\.\d", line) == [f"{sum(found[name]) / 2:.1f}" for name in names]
