"""`weakseg compare`: what stands beside what, the numbers by a slow way, and the report as a reader gets it."""

import base64
import csv
import io
import itertools
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from statistics import mean, stdev

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from browser import PROGRAM, Browser
from common.model.metrics import scores
from conftest import draw_folder, draw_tagged, fit_tiny, on_folder, weakseg, weakseg_process
from experiments.compare import runs as reading
from experiments.compare.columns import cells, find_column, latex, measure, spread_of
from experiments.compare.figures import bars, drawn, row_colors, shares, show_errors
from experiments.compare.protocol import text
from experiments.compare.runs import Finished, Images, read_runs
from experiments.compare.tables import Row, Table, best_step, bootstrap, build_tables, gains
from experiments.runs.load import load_run
from wandb_server import WandbServer, serving

SHORT = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2"]
VOID = {"meta", "img", "link", "br"}


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Two methods, two seeds, tested (best); read it, copy what you change."""
    folder = tmp_path_factory.mktemp("four")
    for method in ("Supervised", "TV"):
        for seed in (0, 1):
            run_dir = folder / f"{method}{seed}"
            fit_tiny(run_dir, "--model", method, *SHORT, "--seed_everything", seed)
            weakseg("test", "--run", run_dir)
    return folder


@pytest.fixture(scope="module")
def report(four, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return folder, weakseg("compare", four, "--output", folder, "--images", "2")


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summary(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def finished(
    source, seed=0, labels=0.1, size=64, method="Supervised", steps=10, miou=50.0, images=None, classes=0, **options
):
    """A run without files."""
    model = {"network": {"weights": None}, "inference": {"flip": False}, "postprocess": {"kind": "none"}, **options}
    data = {"root": f"/{source}/horses", "size": size, "batch_size": 8, "seed": seed}
    config = {
        "seed_everything": seed,
        "trainer": {"max_steps": steps},
        "model": {"class_path": f"methods.{method}", "init_args": model},
        "data": {"class_path": "datamodules.Horses",
                 "init_args": {**data, "supervision": {"kind": "pixels", "fraction": labels}}},
    }  # fmt: skip
    content = {"steps": steps, "best": {}, "last": {}, "seconds": 6.0, "test": {"best": {"test/miou": miou}}}
    content["test"]["best"] |= {f"test/iou/class {number}": 30.0 + number + seed for number in range(classes)}
    return Finished(source, config, content, [], images or {})


# Numbers -----------------------------------------------------------------------------------------------------------


def miou_of_pixels(truths, labels, classes):
    """Mean IoU over all pixels of some images, from sets of pixels."""
    truth, label = np.concatenate([t.ravel() for t in truths]), np.concatenate([one.ravel() for one in labels])
    pairs = [((truth == k) & (label == k), (truth == k) | (label == k)) for k in range(classes)]
    return 100 * mean(both.sum() / either.sum() for both, either in pairs if either.any())


def confusion(truth, labels, classes):
    return np.array([[((truth == i) & (labels == j)).sum() for j in range(classes)] for i in range(classes)], np.int32)


def test_bootstrap_equals_drawing_the_images_and_counting_their_pixels():
    rng = np.random.default_rng(3)
    classes, number, draws = 3, 7, 50
    truths = [rng.integers(0, classes, (4, 5)) for _ in range(number)]
    truths[0][truths[0] == 2] = 0  # a class that draws may miss
    systems = [[np.where(rng.random((4, 5)) < share, t, rng.integers(0, classes, (4, 5))) for t in truths]
               for share in (0.8, 0.7, 0.5, 0.6)]  # fmt: skip
    matrices = [np.stack([confusion(*p, classes) for p in zip(truths, one, strict=True)]) for one in systems]
    counts = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), size=draws)
    differences = []
    for count in counts:
        drawn = np.repeat(np.arange(number), count)
        score = [miou_of_pixels([truths[i] for i in drawn], [one[i] for i in drawn], classes) for one in systems]
        differences.append(mean([score[0] - score[2], score[1] - score[3]]))  # two seeds
    expected = np.quantile(differences, (0.025, 0.975))
    assert bootstrap(matrices[:2], matrices[2:], draws) == pytest.approx(tuple(expected))
    assert expected[0] < expected[1]


def test_the_interval_of_a_run_against_itself_is_nothing():
    matrices = [np.random.default_rng(0).integers(0, 9, (5, 3, 3))]
    assert bootstrap(matrices, matrices, 20) == (0, 0)


def test_an_interval_and_a_best_step_are_of_what_was_measured():
    """Draws of images without a label, and validations without one, give no number."""
    one, other = np.array([[[3, 1], [0, 4]], [[0, 0], [0, 0]]]), np.array([[[2, 2], [2, 2]], [[0, 0], [0, 0]]])
    low, high = bootstrap([one], [other], 50)
    assert low == high == pytest.approx(100 * (3 / 4 + 4 / 5) / 2 - 100 / 3)
    run = finished("a")
    for curve, best in (([(10, float("nan")), (20, 40.0), (30, 39.0)], 20), ([(10, float("nan"))], None)):
        assert best_step(replace(run, curve=curve)) == best


def test_image_matrices_are_those_of_the_predictions_and_add_up_to_the_score(four):
    run = load_run(four / "TV0")
    content = np.load(four / "TV0" / "test_best_images.npz")
    assert content["names"].tolist() == run.data.names("test")
    for batch, matrix in zip(run.data.test_dataloader(), content["confusion"], strict=True):
        batch["image"] = batch["image"].float() / 255
        labels, _ = run.model.predict_labels(run.network, batch, refine=True)
        assert (matrix == confusion(batch["mask"][0].numpy(), labels[0].numpy(), run.data.num_classes)).all()
    total = torch.from_numpy(content["confusion"].sum(0))
    assert scores(total)["miou"].item() == pytest.approx(summary(four / "TV0")["test"]["best"]["test/miou"], abs=1e-4)


def test_every_network_has_its_own_image_matrices(tmp_path):
    fit_tiny(tmp_path, "--model", "Supervised", "--model.init_args.ema_decay", "0.5", *SHORT)
    weakseg("test", "--run", tmp_path)
    content, test = np.load(tmp_path / "test_best_images.npz"), summary(tmp_path)["test"]["best"]
    assert not (content["confusion"] == content["confusion_network"]).all()
    for name in ("", "_network"):
        total = torch.from_numpy(content["confusion" + name].sum(0))
        assert scores(total)["miou"].item() == pytest.approx(test["test/miou" + name], abs=1e-4)


def test_table_and_runs_hold_the_statistics_of_the_summaries(four, report):
    folder, printed = report
    found = {row["row"]: row for row in rows(folder / "table.csv")}
    assert [*found] == ["Supervised", "TV"]  # the baseline first
    scores = {m: [summary(four / f"{m}{s}")["test"]["best"]["test/miou"] for s in (0, 1)] for m in found}
    for method, row in found.items():
        assert float(row["test_miou_best"]) == pytest.approx(mean(scores[method]))
        assert float(row["test_miou_best_sd"]) == pytest.approx(stdev(scores[method]))
        assert row["n"] == row["test_miou_best_n"] == "2"
        assert float(row["steps"]) == 4
        assert float(row["seconds"]) > 0
    paired = [one - other for one, other in zip(scores["TV"], scores["Supervised"], strict=True)]
    assert float(found["TV"]["gain_best"]) == pytest.approx(mean(paired))
    assert float(found["TV"]["gain_best_sd"]) == pytest.approx(stdev(paired))
    assert float(found["TV"]["gain_best_images_low"]) <= float(found["TV"]["gain_best_images_high"])
    assert found["Supervised"]["gain_best"] == ""
    assert f"| TV | 2 | {mean(scores['TV']):.1f} ± {stdev(scores['TV']):.1f} |" in printed
    single = rows(folder / "runs.csv")
    assert [(row["row"], row["seed"]) for row in single] == [(m, s) for m in found for s in ("0", "1")]
    assert {row["best_step"] for row in single} <= {"2", "4"}


def scored(seed, **tests):
    """A run without files, with mIoU by what was tested: `last=50.0, last_network=49.0`."""
    run = finished(f"run{seed}", seed)
    run.summary["test"] = {}
    for name, value in tests.items():
        which, _, network = name.partition("_")
        key = "test/miou" + (f"_{network}" if network else "")
        run.summary["test"].setdefault(which.replace("mrf", "last+mrf"), {})[key] = value
    return run


def test_a_missing_score_keeps_its_place_so_gains_are_those_of_equal_seeds():
    base = Row({}, [scored(1, last=50.0), scored(2, last=60.0)], "base", 3)
    ours = Row({}, [scored(0, last=41.0), scored(1), scored(2, last=61.5)], "ours", 3)
    assert base.tests("last") == [50, 60]
    assert ours.tests("last") == [41, 61.5]
    assert gains(ours, base, "last") == [1.5]
    table = Table({}, "horses", [base, ours, Row({}, [], "missing", 3)], baseline=base)
    titles, shown = cells(table, [find_column(name, "last") for name in ("score", "gain", "seeds", "n", "minutes")])
    assert titles[1:3] == ["test mIoU, last", "gain"]
    assert shown == [
        ["base", "55.0 ± 7.1 (2)", "", "", "2", "0.1"],
        ["ours", "51.2 ± 14.5 (2)", "+1.5 (1)", "+1.5", "3", "0.1"],
        ["missing", "", "", "", "0", ""],
    ]


def test_a_row_shows_the_network_and_the_post_processing_that_it_is_about():
    runs = [scored(0, last=50.0, last_network=48.0, mrf=53.0), scored(1, last=60.0, last_network=59.0, mrf=61.0)]
    base, trained, refined = Row({}, runs), Row({}, runs, network="network"), Row({}, runs, refined="mrf")
    assert [row.tests("last") for row in (base, trained, refined)] == [[50, 60], [48, 59], [53, 61]]
    assert gains(refined, trained, "last") == [5, 2]
    matrix, other = np.ones((2, 3, 3), np.int32), np.full((2, 3, 3), 2, np.int32)
    runs[0].images["last"] = Images(np.array(["x", "y"]), matrix, "{}", {"network": other})
    assert base.matrices(runs[0], "last") is matrix
    assert trained.matrices(runs[0], "last") is other
    assert refined.matrices(runs[0], "last") is None


def test_share_of_the_gap_and_two_deviations_by_hand():
    base, full = (
        Row({}, [scored(0, last=50.0), scored(1, last=52.0)]),
        Row({}, [scored(0, last=60.0), scored(1, last=62.0)]),
    )
    ours = Row({}, [scored(0, last=53.0), scored(1, last=57.0)])
    table = Table({}, "horses", [base, ours, full], baseline=base, full=full)
    shown = [row[1:] for row in cells(table, [find_column("gap", "last"), find_column("2 sd", "last")])[1]]
    assert shown == [["", ""], ["40%", "yes"], ["", "yes"]]  # gains 3 and 5: mean 4, deviation 1.4
    assert measure(table, [find_column("gap", "last")])[1]["gap_last"] == pytest.approx(0.4)


def test_a_cell_says_how_many_values_it_has_if_some_are_missing():
    def cell(planned, *values):
        column, row = spread_of("x", "x", lambda table, row: values), Row({}, [], planned=planned)
        return column.show(row, column.measure(Table({}, "", [row]), row))

    assert cell(3, 50.0, 60.0, 70.0) == "60.0 ± 10.0"
    assert cell(3, 50.0, 60.0) == "55.0 ± 7.1 (2)"
    assert cell(3, 50.0) == "50.0 (1)"
    assert cell(1, 50.0) == "50.0"
    assert cell(3) == ""


def test_an_unknown_column_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="there is no column 'interva', nearest: interval"):
        find_column("interva", "last")


# The report --------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that tags are closed in order and collects what a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.seen = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.seen += data


def test_html_is_sound_and_needs_no_network(report):
    folder, _ = report
    content = (folder / "report.html").read_text()
    page = Page()
    page.feed(content)
    assert page.open == []
    assert not re.search(r"https?:|@import|url\(", content)
    assert page.fetched
    for source in page.fetched:
        head, _, data = source.partition(",")
        assert head == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    # curves, bars; two images with truth, and prediction and errors of each of two rows
    assert len(page.fetched) == 2 + 2 * (2 + 2 * 2)
    for word in ("Supervised", "TV", "test00000", "test00002", "disc", "95 % images"):
        assert word in page.seen


def test_markdown_names_figures_that_are_there(report):
    folder, _ = report
    names = re.findall(r"\]\((.+?)\)", (folder / "report.md").read_text())
    assert {*names} == {f"figures/{path.name}" for path in (folder / "figures").iterdir()}
    assert len(names) == 3


def test_figures_as_pdf_and_svg_hold_letters_and_are_the_same_each_time():
    figure = bars(
        build_tables([finished("a", classes=4), finished("b", 1, classes=4)])[0][0], {"Supervised": "#000"}, "best"
    )
    pdf, svg = drawn(figure, "pdf"), drawn(figure, "svg")
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf  # TrueType
    assert b"/Subtype /Type3" not in pdf
    assert ">class 3</text>" in svg.decode()
    assert (pdf, svg) == (drawn(figure, "pdf"), drawn(figure, "svg"))


def test_class_bars_of_test_scores_take_none_of_val():
    untested = finished("b", 1)
    untested.summary |= {"test": {}, "last": {"val/iou/class 0": 90.0}}
    (table,), _ = build_tables([finished("a", classes=2), untested])
    (axes,) = bars(table, row_colors([table]), "best").axes
    assert "test, best" in axes.get_ylabel()
    assert [patch.get_height() for patch in axes.patches] == [30, 31]
    (table,), _ = build_tables([untested])
    (axes,) = bars(table, row_colors([table]), "best").axes
    assert "val, last" in axes.get_ylabel()
    assert [patch.get_height() for patch in axes.patches] == [90]


def test_each_evaluation_has_its_own_figure_over_amounts():
    runs = [finished(f"{size}-{labels}", size=size, labels=labels) for size in (64, 96) for labels in (0.1, 0.2)]
    tables, _ = build_tables(runs)
    titles = [title for title, _ in shares(tables, row_colors(tables), "best")]
    assert titles == [f"Horses, pixels (evaluation.size [{size}, {size}])" for size in (64, 96)]


@pytest.mark.parametrize("count", [6, 21])
def test_class_bars_and_their_names_are_apart(count):
    """At the size at which the page shows the figure, also of many classes and rows."""
    runs = [finished(f"{method}{seed}", seed, method=method, classes=count)
            for method in ("Supervised", "TV", "SCL", "CPS") for seed in (0, 1)]  # fmt: skip
    (table,), _ = build_tables(runs)
    figure = bars(table, row_colors([table]), "best")
    (axes,) = figure.axes
    figure.canvas.draw()
    labels = axes.get_yticklabels() if count > 8 else axes.get_xticklabels()
    assert [label.get_text() for label in labels] == [f"class {number}" for number in range(count)]
    boxes = [label.get_window_extent() for label in labels]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    thick = [min(one.get_window_extent().width, one.get_window_extent().height) for one in axes.patches]
    assert len(thick) == 4 * count
    assert figure.get_figwidth() <= 8 or count <= 8
    assert min(thick) * 120 / figure.dpi > 8  # pixels


def test_tables_for_latex_are_booktabs_with_special_characters_escaped(four, tmp_path):
    text = latex("50 % of A_b & C", ["", "gain #", "x^2"], [["TV w=0.1_{a}", "-2.8 ± 1.0", "$5~"], ["a\\b", "", "<|>"]])
    assert r"\caption{50 \% of A\_b \& C}" in text
    lines = [line.strip() for line in text.splitlines()]
    assert lines[3:] == [
        r"\begin{tabular}{lrr}", r"\toprule", r"& gain \# & x\textasciicircum{}2 \\", r"\midrule",
        r"TV w=0.1\_\{a\} & $-$2.8 $\pm$ 1.0 & \$5\textasciitilde{} \\",
        r"a\textbackslash{}b &  & \textless{}\textbar{}\textgreater{} \\", r"\bottomrule", r"\end{tabular}",
        r"\end{table}"]  # fmt: skip
    weakseg("compare", four, "--output", tmp_path, "--images", "0", "--formats", "pdf", "svg")
    text, content = (tmp_path / "table.tex").read_text(), rows(tmp_path / "table.csv")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    (columns,) = re.findall(r"tabular}{(l?r*)}", text)
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 1 + len(content)
    assert all(line.count(" & ") == len(columns) - 1 for line in body)
    mean, deviation = (float(content[1][f"test_miou_best{end}"]) for end in ("", "_sd"))
    assert f"{mean:.1f} $\\pm$ {deviation:.1f}" in body[2]
    kinds = {path.suffix for path in (tmp_path / "figures").iterdir()}
    assert kinds == {".png", ".pdf", ".svg"}


@pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium to open the page in")
def test_the_page_fits_a_phone_and_its_columns_are_sorted_by_keys(report, tmp_path):
    folder, _ = report
    browser = Browser(tmp_path)
    try:
        colors = set()
        for width, dark in ((1280, False), (390, True)):
            browser.resize(width, 800, dark=dark, touch=width < 500)
            browser.open((folder / "report.html").as_uri())
            browser.until("!!document.querySelector('th button')")
            assert browser.value("document.documentElement.scrollWidth") <= width
            colors.add(browser.value("getComputedStyle(document.body).backgroundColor"))
        assert len(colors) == 2
        names = "[...document.querySelectorAll('.scores tbody th')].map(one => one.textContent)"
        scores = "[...document.querySelectorAll('.scores tbody tr')].map(one => parseFloat(one.cells[2].textContent))"
        assert browser.value(names) == ["Supervised", "TV"]
        head = "document.querySelectorAll('.scores thead th')[{}]"
        for column, order in ((0, "ascending"), (0, "descending"), (2, "descending"), (2, "ascending")):
            browser.value(f"{head.format(column)}.querySelector('button').focus()")
            browser.key("Enter")
            assert browser.value(f"{head.format(column)}.getAttribute('aria-sort')") == order
            found = browser.value(names if column == 0 else scores)
            assert found == sorted(found, reverse=order == "descending")
        assert browser.value("document.querySelectorAll('[aria-sort]').length") == 1
        assert browser.value("[...document.querySelectorAll('th')].every(one => one.scope)")
        assert browser.errors == []
    finally:
        browser.close()


def test_errors_are_red_where_the_label_is_wrong_and_nowhere_else():
    truth = np.array([[0, 1, 255]], np.uint8)
    shown = show_errors(np.full((1, 3, 3), 100, np.uint8), truth, np.array([[0, 0, 0]], np.uint8))
    assert [tuple(pixel) == (225, 0, 60) for pixel in shown[0]] == [False, True, False]


def test_without_data_there_is_a_report_without_pictures(tmp_path):
    root = draw_folder(tmp_path / "data")
    fit_tiny(tmp_path / "run", *on_folder(root), "--trainer.max_steps", "2", "--trainer.val_check_interval", "2")
    shutil.rmtree(root)
    weakseg("compare", tmp_path / "run", "--output", tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "no pictures: " in page
    assert "1 runs have no test score: `--test` measures them" in page
    assert "red thing" not in page
    assert (tmp_path / "report" / "figures").is_dir()


def test_test_images_that_have_tags_alone_are_not_shown(tmp_path):
    tags = [*on_folder(draw_tagged(tmp_path / "data")), "--data.init_args.tags", "tags.txt"]
    fit_tiny(tmp_path / "run", "--model", "CAM", *tags, "--trainer.max_steps", "2")
    weakseg("compare", tmp_path / "run", "--output", tmp_path / "report")
    assert "no pictures: no test image has a mask" in (tmp_path / "report" / "report.md").read_text()


def test_test_measures_what_is_missing(four, tmp_path):
    run = shutil.copytree(four / "TV0", tmp_path / "TV0")
    weakseg("compare", run, "--output", tmp_path / "report", "--images", "0", "--test")
    assert {*summary(run)["test"]} == {"best", "last"}
    assert (run / "test_last_images.npz").exists()
    assert rows(tmp_path / "report" / "table.csv")[0]["test_miou_last"]


# What stands beside what -------------------------------------------------------------------------------------------


def test_rows_are_named_by_what_differs_and_the_seed_does_not():
    runs = [finished(f"{w}-{s}", s, method="SCL", weight=w, other=1) for w in (0, 0.1) for s in (0, 1, 2)]
    tables, remarks = build_tables([*runs, finished("base")])
    assert len(tables) == 1
    assert [(row.label, len(row.runs)) for row in tables[0].rows] == [
        ("Supervised", 1), ("SCL weight=0", 3), ("SCL weight=0.1", 3)]  # fmt: skip
    assert remarks == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 96}, "evaluation.size"),
        ({"inference": {"flip": True}}, "evaluation.inference.flip"),
        ({"postprocess": {"kind": "mrf", "mu": 1.0}}, "evaluation.postprocess"),
    ],
)
def test_another_evaluation_is_kept_apart_and_the_report_says_why(change, said):
    tables, remarks = build_tables([finished("a"), finished("b", 1, **change)])
    assert [len(table.rows) for table in tables] == [1, 1]
    assert len({table.title for table in tables}) == 2
    assert len(remarks) == 1
    assert said in remarks[0]
    assert "a; b" in remarks[0]
    assert "not put into one column" in remarks[0]


def test_a_test_told_to_predict_otherwise_is_kept_apart(four, tmp_path):
    for name in ("Supervised0", "TV0"):
        shutil.copytree(four / name, tmp_path / name)
    weakseg("test", "--run", tmp_path / "TV0", "--model.init_args.inference.flip", "true")
    tables, remarks = build_tables(read_runs([str(tmp_path)])[0])
    assert len(tables) == 2
    assert "evaluation.inference.flip" in remarks[0]


def test_other_labels_and_other_data_are_other_tables():
    other = finished("c")
    other.config["data"]["class_path"] = "datamodules.Cows"
    tables, _ = build_tables([finished("a"), finished("b", labels=0.2), other])
    assert [table.title for table in tables] == ["Cows, pixels-0.1", "Horses, pixels-0.1", "Horses, pixels-0.2"]


def test_other_settings_make_other_rows_and_a_note():
    tables, _ = build_tables([finished("a"), finished("b", steps=20, method="TV")])
    assert [row.label for row in tables[0].rows] == ["Supervised", "TV"]
    assert "rows differ in trainer.max_steps: 10 (Supervised), 20 (TV)" in tables[0].notes


def test_a_repeated_seed_counts_once():
    tables, remarks = build_tables([finished("a"), finished("b"), finished("c", 1)])
    assert [run.source for run in tables[0].rows[0].runs] == ["a", "c"]
    assert remarks == ["b: left out, same options and seed as a"]


def test_other_test_images_under_the_same_options_are_an_error():
    matrix = np.ones((2, 2, 2), np.int32)
    how = json.dumps({"inference": {"flip": False}, "postprocess": {"kind": "none"}, "size": [64, 64]})
    one = {"best": Images(np.array(["x", "y"]), matrix, how)}
    for names, found in ((["x", "z"], matrix), (["x", "y"], matrix * 2)):
        other = {"best": Images(np.array(names), found, how)}
        with pytest.raises(ValueError, match=r"a and b agree .* different images or masks"):
            build_tables([finished("a", images=one), finished("b", 1, images=other)])


def test_refinements_that_differ_are_told():
    def run(source, seed, mu):
        how = {"inference": {"flip": False}, "postprocess": {"kind": "mrf", "mu": mu}, "size": [64, 64]}
        images = {"best+mrf": Images(np.array(["x"]), np.ones((1, 2, 2), np.int32), json.dumps(how))}
        one = finished(source, seed, images=images)
        one.summary["test"]["best+mrf"] = {"test/miou": 50.0}
        return one

    [same], _ = build_tables([run("a", 0, 8.0), run("b", 1, 8.0)])
    [other], _ = build_tables([run("a", 0, 8.0), run("b", 1, 0.1)])
    assert not any("best+mrf" in note for note in same.notes)
    [note] = [note for note in other.notes if "best+mrf" in note]
    assert "'mu': 8.0} (a)" in note
    assert "'mu': 0.1} (b)" in note


def test_baseline_is_found_or_refused_with_the_names_there_are():
    runs = [finished("a", miou=40.0), finished("b", method="TV", miou=42.5)]
    assert build_tables(runs)[0][0].baseline.label == "Supervised"
    assert build_tables(runs, "TV")[0][0].baseline.label == "TV"
    assert build_tables([runs[1]])[0][0].baseline is None
    with pytest.raises(ValueError, match=r"no row 'CPS'.*Supervised; TV"):
        build_tables(runs, "CPS")
    with pytest.raises(ValueError, match=r"more than one row.*TV w=1; TV w=2"):
        build_tables([finished("c", method="TV", w=1), finished("d", method="TV", w=2)], "TV")


def test_numbers_that_w_and_b_writes_otherwise_are_the_same():
    assert text(1.0) == text(1) == "1"
    assert text([0.75, 1.50]) == "[0.75, 1.5]"
    assert text(True) == "True"


def test_what_cannot_be_compared_is_said_in_a_line(tmp_path, four):
    assert "there is no run in" in weakseg("compare", tmp_path, expect=1)
    run = shutil.copytree(four / "TV0", tmp_path / "TV0")
    (run / "summary.json").unlink()
    assert "no run is finished" in weakseg("compare", tmp_path, expect=1)
    assert "not finished" in read_runs([str(tmp_path), str(four)])[1][0]


def test_one_run_of_odd_content_does_not_end_the_comparison(tmp_path, four):
    for number, name in enumerate(("TV0", "TV1")):
        shutil.copytree(four / name, tmp_path / f"{number}")
    config = yaml.safe_load((tmp_path / "1" / "config.yaml").read_text())
    del config["data"]["init_args"]["size"]
    (tmp_path / "1" / "config.yaml").write_text(yaml.safe_dump(config))
    found, left_out = read_runs([str(tmp_path)])
    assert len(found) == 1
    assert "cannot be read (KeyError: 'size')" in left_out[0]


def test_a_mistyped_source_ends_it_though_others_have_runs(four):
    for wrong in (four / "TV7", four / "RRN*"):
        with pytest.raises(FileNotFoundError, match=re.escape(f"there is no run in {wrong}: give")):
            read_runs([str(four), str(wrong)])


def test_what_a_shells_pattern_names_beside_the_runs_is_told_and_no_error(tmp_path, four):
    log = tmp_path / "TV0.log"
    log.touch()
    found, left_out = read_runs([str(four), str(four / "TV0"), str(log)])
    assert len(found) == 4
    assert len(left_out) == 1
    assert f"no run in {log}" in left_out[0]


def test_runs_are_found_below_folders_and_by_patterns(four):
    assert len(read_runs([str(four)])[0]) == 4
    assert [run.source for run in read_runs([str(four / "T*")])[0]] == [str(four / "TV0"), str(four / "TV1")]


# The W&B server ----------------------------------------------------------------------------------------------------


@pytest.fixture
def server(four):
    runs = {run.folder.name: run for run in read_runs([str(four)])[0]}
    one = runs["TV0"]
    others = {"stranger": replace(one, config={"lr": 1}), "young": replace(one, summary={"val/miou": 3})}
    return WandbServer({"Synthetic/pixels-0.05": {**runs, **others}, "other": {"again": one}})


def compare_process(environment, *arguments):
    """In a process of its own: the client keeps the first server that it hears of."""
    process = weakseg_process("compare", *arguments, **environment)
    text, _ = process.communicate(timeout=180)
    assert "Traceback" not in text
    return process.returncode, text


def test_runs_of_the_server_are_those_of_their_directories(four, server, tmp_path):
    weakseg("compare", four, "--output", tmp_path / "local")
    with serving(server) as environment:
        status, text = compare_process(
            environment, "wandb:us/weakseg/Synthetic/pixels-0.05", "--output", tmp_path / "remote"
        )
    assert status == 0, text
    names = ("Supervised0", "Supervised1", "TV0", "TV1")
    assert sorted(server.fetched) == [f"{name}/test_best_images.npz" for name in names]  # and nothing else
    tables = sorted(path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("*.csv"))
    assert tables
    for table in tables:
        local = (tmp_path / "local" / table).read_text().replace(f"{four}/", "wandb:us/weakseg/")
        assert (tmp_path / "remote" / table).read_text() == local


@pytest.mark.parametrize(
    ("source", "forgotten", "named"),
    [
        ("wandb:us/nothing", None, "W&B: Could not find project nothing"),
        pytest.param("wandb:us/weakseg", "Viewer", "invalid credentials", marks=pytest.mark.slow),
        pytest.param("wandb:us/weakseg", "SampledHistoryPage", "no history found", marks=pytest.mark.slow),
    ],
)
def test_a_refusal_of_the_server_is_one_line(server, source, forgotten, named):
    server.forgotten.add(forgotten)
    with serving(server) as environment:
        status, text = compare_process(environment, source)
    assert status == 1
    assert named in text
    assert "log in with `wandb login`, or compare run directories" in text.splitlines()[-1]


def test_an_unreadable_file_of_w_and_b_is_named(tmp_path):
    (tmp_path / "run-x.wandb").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"W&B cannot read .*run-x\.wandb"):
        reading.from_offline(tmp_path)
