"""`weakseg study`: what is run and what is not again, what stands on the page, and studies that are killed or wrong."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
import yaml

import methods
from common.model.metrics import SegmentationMetrics
from common.model.postprocess import PostprocessConfig
from conftest import ROOT, TINY, fit_tiny, slow_but_for, snapshot, weakseg
from experiments.cli.configs import compose, find_config
from experiments.cli.study import JOBS, make_parser, parse, sweep
from experiments.compare.protocol import flatten
from experiments.runs.load import load_run
from experiments.studies import element, runner
from experiments.studies.cluster import Cluster, read_cluster
from experiments.studies.element import Element, slurm_states
from experiments.studies.plan import Place, Run, all_runs, as_words, find_place, find_run, named_rows
from experiments.studies.postprocess import key_of, score_settings
from experiments.studies.records import record
from experiments.studies.runner import Runner, log_file, remaining, share_done
from experiments.studies.spec import read_study, shipped
from same_run import assert_same_run

SHORT = ["--trainer.max_steps=2", "--trainer.val_check_interval=2"]
FEW = f"""
title: Tiny scenes
about: Some words
  about it.
regimes:
  pixels: {{configs: [{TINY}], set: {{data.supervision.kind: pixels}}}}
  clicks: {{configs: [{TINY}], set: {{data.supervision.kind: points, data.supervision.fraction: null}}}}
seeds: [0, 1]
baseline: base
rows:
  base: {{config: supervised}}
  TV: {{config: tv, set: {{model.tv_weight: 0.3}}, regimes: [pixels]}}
  + MRF: {{of: base, regimes: [pixels], test: {{model.postprocess.kind: mrf, model.postprocess.mu: 1.0}}}}
  all labels: {{config: supervised, configs: [all_labels], from: pixels}}
search:
  TV: {{over: {{model.tv_weight: [0.1, 0.3]}}}}
  + MRF: {{over: {{model.postprocess.mu: [0.0, 1.0, 5.0]}}}}
table: {{score: last, columns: [score, gain, seeds, interval, gap, minutes, train/loss, test/accuracy, test/dice/box]}}
"""


@pytest.fixture
def at_once(monkeypatch):
    """Commands run in this process: starting Python takes longer than a tiny run."""
    made = []

    def run(self):
        for task in self.tasks:
            for words in task.missing():
                made.append(words)
                weakseg(*words)
        return []

    monkeypatch.setattr(Runner, "run", run)
    return made


def write(folder, text=FEW, name="few"):
    file = folder / f"{name}.yaml"
    file.write_text(text)
    return file


def few(folder, *words, extra=(), expect=0):
    """A study with its runs and its page in `folder`."""
    places = ["--runs", folder / "runs", "--output", folder / "results"]
    return weakseg("study", folder / "few.yaml", *places, *words, "--", *SHORT, *extra, expect=expect)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study, and the commands that made it; read it, copy what you change."""
    folder = tmp_path_factory.mktemp("done")
    write(folder)
    made = []

    def run(self):
        for task in self.tasks:
            for words in task.missing():
                made.append(words)
                weakseg(*words)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "run", run)
        printed = few(folder)
    return folder, made, printed


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summary(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


# What is run -------------------------------------------------------------------------------------------------------


def test_each_run_is_made_once_and_what_is_not_shown_is_not_tested(done):
    folder, made, _ = done
    runs = folder / "runs" / "few"
    folders = sorted(str(path.parent.relative_to(runs)) for path in runs.rglob("summary.json"))
    assert folders == [
        *(f"clicks/base/seed{seed}" for seed in (0, 1)),
        *(
            f"pixels/{row}/seed{seed}"
            for row in ("TV", "all_labels", "base")
            for seed in (0, 1)
            if (row, seed) != ("TV", 0)
        ),
        # The row's own value is a point of its search: one run for both.
        *(f"search/pixels/TV/tv_weight={weight}/seed0" for weight in (0.1, 0.3)),
    ]
    assert sum(words[0] == "fit" for words in made) == len(folders)
    tests = {name: sorted(summary(runs / name).get("test", {})) for name in folders}
    assert tests["search/pixels/TV/tv_weight=0.1/seed0"] == []  # nothing is chosen on test
    assert tests["search/pixels/TV/tv_weight=0.3/seed0"] == ["last"]
    assert tests["pixels/base/seed1"] == ["last", "last+mrf"]


def files(folder):
    """What the runs have written; a study only adds their logs."""
    return {name: content for name, content in snapshot(folder / "runs").items() if not name.endswith(".log")}


def test_the_same_command_again_runs_nothing_and_writes_the_same_page(done, monkeypatch):
    folder, _, printed = done
    before = files(folder)
    page = (folder / "results" / "few.md").read_text()
    monkeypatch.setattr(runner, "PROGRAM", ("no such program",))
    again = few(folder)
    assert files(folder) == before
    assert (folder / "results" / "few.md").read_text() == page
    assert again.count("finished before") == 9
    assert again.splitlines()[-1] == printed.splitlines()[-1] == f"page: {folder / 'results' / 'few.md'}"


def test_a_run_is_the_ordinary_fit_of_its_words(done, tmp_path):
    folder, made, _ = done
    words = next(words for words in made if f"{folder}/runs/few/clicks/base/seed1" in words)
    assert words[: words.index("--run_dir")] == [
        "fit", "--config", str(TINY), "--data.supervision.kind=points", "--data.supervision.fraction=null",
        "--config", "supervised", "--seed_everything=1", *SHORT]  # fmt: skip
    config = yaml.safe_load((folder / "runs/few/clicks/base/seed1/config.yaml").read_text())
    assert config["data"]["init_args"]["supervision"]["kind"] == "points"
    full = yaml.safe_load((folder / "runs/few/pixels/all_labels/seed0/config.yaml").read_text())
    assert full["data"]["init_args"]["supervision"]["kind"] == "dense"  # laid over the regime's values


def test_a_row_may_be_made_alone(done, tmp_path, at_once):
    write(tmp_path)
    text = few(tmp_path, "--row", "pixels/base", "--seed", "1")
    run = tmp_path / "runs/few/pixels/base/seed1"
    assert f"run directory: {run}" in text
    assert sorted(summary(run)["test"]) == ["last", "last+mrf"]
    assert len([*(tmp_path / "runs").rglob("summary.json")]) == 1
    assert "finished before" in few(tmp_path, "--row", "pixels/base", "--seed", "1")
    assert metrics(run) == metrics(done[0] / "runs/few/pixels/base/seed1")


def test_dry_run_prints_the_commands_and_the_budget(done, tmp_path):
    folder, made, _ = done
    write(tmp_path)
    text = few(tmp_path, "--dry-run")
    commands = [line for line in text.splitlines() if line.startswith("weakseg ")]
    assert len(commands) == len(made)
    assert not (tmp_path / "runs").exists()
    assert "pixels/base: 2 runs, 0 done\n" in text
    assert text.splitlines()[-1].startswith("9 runs; ")
    text = few(folder, "--dry-run")
    assert "weakseg fit" not in text
    assert re.search(r"pixels/base: 2 runs, 2 done, \d+\.\d min each", text)


def test_a_search_whose_runs_would_share_a_folder_and_a_value_that_is_no_list_are_refused(tmp_path):
    file = tmp_path / "few.yaml"
    text = FEW.replace("{model.tv_weight: 0.3}", "{model.optimizer.lr: 0.1, model.own.lr: 0.2}")
    file.write_text(text.replace("{over: {model.tv_weight: [0.1, 0.3]}}", "{over: {model.optimizer.lr: [0.1, 0.3]}}"))
    with pytest.raises(ValueError, match=r"model.optimizer.lr and model.own.lr end alike"):
        read_study(str(file))
    file.write_text(re.sub(r"^seeds: .*$", "seeds: 3", FEW, flags=re.MULTILINE))
    with pytest.raises(ValueError, match=r"few.yaml: .*int"):
        read_study(str(file))


def test_searches_of_a_row_share_the_run_with_its_own_values(tmp_path):
    file = tmp_path / "few.yaml"
    both = "[{over: {model.tv_weight: [0.1, 0.3]}}, {over: {model.start: [0.0, 0.2]}}]"
    text = FEW.replace("{model.tv_weight: 0.3}", "{model.tv_weight: 0.3, model.start: 0.2}")
    file.write_text(text.replace("TV: {over: {model.tv_weight: [0.1, 0.3]}}", f"TV: {both}"))
    runs = [run for run in all_runs(read_study(str(file)), find_place(tmp_path, tmp_path, None)) if run.row == "TV"]
    values = [{*run.fit} & {"--model.tv_weight=0.1", "--model.start=0.0"} for run in runs if run.seed == 0]
    assert sorted(values, key=sorted) == [set(), {"--model.start=0.0"}, {"--model.tv_weight=0.1"}]


def test_values_are_words_of_yaml():
    given = {"a": None, "b": False, "c": [1, 2.5], "d": "x y", "e": 1e-5}
    assert as_words(given) == ["--a=null", "--b=false", "--c=[1, 2.5]", "--d=x y", "--e=1e-05"]


# What is shown -----------------------------------------------------------------------------------------------------


def test_csv_and_page_hold_the_statistics_of_the_summaries(done):
    folder, _, printed = done
    runs = folder / "runs" / "few"
    found = {(row["regime"], row["row"]): row for row in rows(folder / "results" / "few.csv")}
    assert [*found] == [("pixels", "base"), ("pixels", "TV"), ("pixels", "+ MRF"), ("pixels", "all labels"),
                        ("clicks", "base"), ("clicks", "all labels")]  # fmt: skip
    base, full, crf = (
        [summary(runs / f"pixels/{row}/seed{seed}")["test"][which]["test/miou"] for seed in (0, 1)]
        for row, which in (("base", "last"), ("all_labels", "last"), ("base", "last+mrf"))
    )
    tv = [summary(runs / run)["test"]["last"]["test/miou"]
          for run in ("search/pixels/TV/tv_weight=0.3/seed0", "pixels/TV/seed1")]  # fmt: skip
    for row, scores in (("base", base), ("all labels", full), ("+ MRF", crf), ("TV", tv)):
        one = found["pixels", row]
        assert float(one["test_miou_last"]) == pytest.approx(mean(scores))
        assert float(one["test_miou_last_sd"]) == pytest.approx(stdev(scores))
        assert one["n"] == "2"
        gains = [a - b for a, b in zip(scores, base, strict=True)]
        if row == "base":
            assert one["gain_last"] == one["gap_last"] == ""
        else:
            assert float(one["gain_last"]) == pytest.approx(mean(gains))
            assert one["gain_last_by_seed"] == ", ".join(f"{gain:+.1f}" for gain in gains)
            assert float(one["gain_last_images_low"]) <= mean(gains) <= float(one["gain_last_images_high"])
        if row in ("TV", "+ MRF"):
            assert float(one["gap_last"]) == pytest.approx(mean(gains) / (mean(full) - mean(base)))
    known = [json.loads((runs / f"pixels/base/seed{seed}/postprocess_val.json").read_text()) for seed in (0, 1)]
    own = key_of("last", {"model.postprocess.kind": "mrf", "model.postprocess.mu": 1.0})
    for row, scores in (
        ("base", [summary(runs / f"pixels/base/seed{seed}")["last"]["val/miou"] for seed in (0, 1)]),
        ("+ MRF", [one[own] for one in known]),  # its search is over one seed
    ):
        assert float(found["pixels", row]["val_miou_last"]) == pytest.approx(mean(scores))
        assert found["pixels", row]["val_miou_last_n"] == "2"
    dice = [summary(runs / f"pixels/base/seed{seed}")["test"]["last"]["test/dice/box"] for seed in (0, 1)]
    assert float(found["pixels", "base"]["test_dice/box_last"]) == pytest.approx(mean(dice))
    page = (folder / "results" / "few.md").read_text()
    assert f"| base | {mean(base):.1f} ± {stdev(base):.1f} |" in page
    assert f"| base | {mean(base):.1f} ± {stdev(base):.1f} |" in printed
    assert "# Tiny scenes\n\nSome words about it." in page
    assert "Every run with `--trainer.max_steps=2 --trainer.val_check_interval=2`" in page
    assert f"commits {summary(runs / 'pixels/base/seed0')['commit']}" in page
    # Of rows on other labels the table says so.
    assert "rows differ in labels: kind pixels, fraction 0.05 (base; TV; + MRF), kind dense (all labels)" in page


def test_the_page_says_which_value_is_best_on_val_and_whether_the_search_is_finished(done, tmp_path):
    folder = done[0]
    scores = {
        w: summary(folder / f"runs/few/search/pixels/TV/tv_weight={w}/seed0")["last"]["val/miou"] for w in (0.1, 0.3)
    }
    page = (folder / "results" / "few.md").read_text()
    best = max(scores, key=scores.__getitem__)
    marks = {0.1: "", 0.3: "chosen"}
    marks[best] = ", ".join(filter(None, ["best", marks[best]]))
    for weight, score in scores.items():
        assert f"| {weight} | {score:.1f} | {marks[weight]} |" in page
    end = "lowest" if best == 0.1 else "highest"  # of two values either is an end
    assert f"The best tv_weight, {best}, is the {end} tried: the search is not finished." in page
    assert ("The row's own value is not the best one on val." in page) >= (best == 0.1)


def test_from_records_a_page_is_written_without_runs(done, tmp_path, at_once):
    folder, records = write(tmp_path).parent, tmp_path / "records"
    shutil.copytree(done[0] / "runs", folder / "runs")
    few(folder, "--records", records)
    page = (folder / "results" / "few.md").read_text()
    assert not [*records.rglob("*.ckpt")]
    assert sum(file.stat().st_size for file in records.rglob("*")) < 100_000 * len([*records.rglob("summary.json")])
    shutil.rmtree(folder / "runs")
    shutil.rmtree(folder / "results")
    few(folder, "--records", records)
    assert (folder / "results" / "few.md").read_text() == page
    assert at_once == []  # nothing is made again

    lost = next(records.rglob("summary.json"))
    lost.unlink()
    shutil.rmtree(folder / "runs")
    few(folder, "--records", records)
    assert [words[0] for words in at_once][:1] == ["fit"]
    assert lost.exists()  # it is recorded anew

    shutil.rmtree(folder / "runs")
    config = lost.with_name("config.yaml")
    config.write_text(config.read_text().replace("max_steps: 2", "max_steps: 3"))
    text = few(folder, "--records", records, expect=1)
    assert f"{lost.parent} holds a run with trainer.max_steps 3, the study says 2: remove that folder" in text


def test_records_name_no_folder_of_the_machine(tmp_path):
    run = Run("a/b", "a", "b", 0, tmp_path / "runs" / "few" / "b" / "seed0", (), {})
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(f"root: {tmp_path}/sets/voc\nweights: {tmp_path}/files/a.safetensors\n")
    place = Place(tmp_path / "runs", tmp_path / "sets", tmp_path / "files")
    record([run], place, tmp_path / "records")
    assert not (tmp_path / "records").exists()  # it is not finished
    (run.folder / "summary.json").write_text("{}")
    record([run], place, tmp_path / "records")
    written = tmp_path / "records" / "few" / "b" / "seed0" / "config.yaml"
    assert written.read_text() == "root: data/voc\nweights: weights/a.safetensors\n"


def test_words_by_hand_survive_and_a_marked_file_is_filled_in(done, tmp_path):
    folder = done[0]
    page, readme = folder / "results" / "few.md", tmp_path / "README.md"
    before = page.read_text()
    readme.write_text("a\n<!-- study few -->\nold\n<!-- /study few -->\nb\n")
    page.write_text(f"above\n{before}below\n")
    few(folder, "--page", "--update", readme)
    assert page.read_text() == f"above\n{before}below\n"
    page.write_text(before)
    text = readme.read_text()
    assert text.startswith("a\n<!-- study few -->\n**pixels**\n\n| method | test mIoU, last |")
    assert text.endswith("|\n<!-- /study few -->\nb\n")
    assert "**clicks**" in text
    assert "old" not in text
    readme.write_text("no markers\n")
    assert f"{readme} has no lines <!-- study few --> and <!-- /study few -->" in few(
        folder, "--page", "--update", readme, expect=1
    )


def test_a_test_with_other_values_is_not_shown_as_the_rows(done, tmp_path):
    """The study was changed, and its page is written without making anything."""
    runs, results = done[0] / "runs", tmp_path / "results"
    study = write(tmp_path, FEW.replace("model.postprocess.mu: 1.0}", "model.postprocess.mu: 5.0}"))
    weakseg("study", study, "--runs", runs, "--output", results, "--page", "--", *SHORT)
    found = {(row["regime"], row["row"]): row for row in rows(results / "few.csv")}
    assert found["pixels", "+ MRF"]["n"] == "0"
    assert found["pixels", "+ MRF"]["test_miou_last"] == ""
    assert found["pixels", "base"]["n"] == "2"


def test_what_is_missing_stays_blank_and_has_its_command(tmp_path):
    file = write(tmp_path)
    few(tmp_path, "--page")
    page = (tmp_path / "results" / "few.md").read_text()
    assert "| TV |  |  |  |  |" in page
    assert f"9 runs are missing, 1 of them of searches; `weakseg study {file}` makes them." in page
    assert f'- pixels/base, seeds 0, 1: `weakseg study {file} --row "pixels/base" --seed 0`' in page
    assert "2 of 2 points are not measured yet." in page
    assert not (tmp_path / "runs").exists()


def test_runs_that_were_trained_otherwise_do_not_stand_in_one_row_or_table(done, tmp_path):
    """A value that was changed after runs were made is refused before anything is run, and a page never mixes them."""
    folder = done[0]
    runs = folder / "runs"
    write(tmp_path, FEW.replace("tv_weight: 0.3", "tv_weight: 0.2"))
    words = ["study", tmp_path / "few.yaml", "--runs", runs, "--output", tmp_path / "results", "--", *SHORT]
    found = weakseg(*words, expect=1)
    assert f"{runs}/few/pixels/TV/seed1 holds a run with model.tv_weight 0.3, the study says 0.2: remove" in found
    found = weakseg(*words[:-2], "--trainer.max_steps=3", expect=1)
    assert "holds a run with trainer.max_steps 2, the study says 3" in found
    write(tmp_path)
    copy = tmp_path / "runs/few/pixels/TV"
    (tmp_path / "runs/few").mkdir(parents=True)
    os.symlink(runs / "few/search", tmp_path / "runs/few/search")
    os.symlink(runs / "few/clicks", tmp_path / "runs/few/clicks")
    copy.mkdir(parents=True)
    fit_tiny(
        copy / "seed1", "--config", "tv", "--model.tv_weight=0.3", "--model.start=0", "--seed_everything=1", *SHORT
    )
    found = few(tmp_path, "--page", expect=1)
    assert "two seeds of 'TV', differ in model.start: 0 and " in found


# Post-processing ---------------------------------------------------------------------------------------------------


def test_post_processing_is_searched_with_the_network_that_test_scores(tmp_path):
    """A moving average that differs from the trained network; by the slow way, image by image."""
    fit_tiny(tmp_path / "run", "--model.ema_decay=0.9", *SHORT)
    settings = [{"model.postprocess.kind": "mrf", "model.postprocess.mu": mu} for mu in (0.0, 2.0)]
    score_settings(tmp_path / "run", "last", settings)
    found = json.loads((tmp_path / "run" / "postprocess_val.json").read_text())
    run = load_run(tmp_path / "run", "last")
    run.data.num_workers = 0
    expected = {}
    for name, network in run.model.eval_networks().items():
        for setting in settings:
            run.model.postprocess = PostprocessConfig("mrf", setting["model.postprocess.mu"])
            metric = SegmentationMetrics(run.data.num_classes)
            for batch in run.data.val_dataloader():
                batch["image"] = batch["image"].float() / 255
                with torch.no_grad():
                    metric.update(run.model.predict_labels(network, batch, refine=True)[0], batch["mask"])
            expected[name, key_of("last", setting)] = float(metric.compute()["miou"])
    first, second = run.model.eval_networks()
    assert run.model.scored_network is run.model.eval_networks()[first]
    for key, value in found.items():
        assert value == pytest.approx(expected[first, key], abs=1e-3)
    assert any(abs(value - expected[second, key]) > 1e-2 for key, value in found.items())
    # Known scores are kept, new ones added.
    score_settings(tmp_path / "run", "last", [*settings, settings[0] | {"model.postprocess.mu": 1.0}])
    again = json.loads((tmp_path / "run" / "postprocess_val.json").read_text())
    assert again.items() > found.items()
    with pytest.raises(ValueError, match="unexpected keyword argument 'nu'"):
        score_settings(tmp_path / "run", "last", [{"model.postprocess.nu": 1.0}])


def test_the_page_has_the_search_over_post_processing(done):
    folder = done[0]
    scores = json.loads((folder / "runs/few/pixels/base/seed0/postprocess_val.json").read_text())
    page = (folder / "results" / "few.md").read_text()
    for mu in (0.0, 1.0, 5.0):
        setting = {"model.postprocess.kind": "mrf", "model.postprocess.mu": mu}
        assert re.search(rf"\| {mu} \| {scores[key_of('last', setting)]:.1f} \| ", page)


# Wrong inputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("baseline: base", "baseline: bass", "baseline: there is no row 'bass', nearest: base"),
        ("title:", "titel:", "has no `titel`, nearest: title"),
        ("config: tv,", "confg: tv,", "row 'TV' has no `confg`, nearest: config"),
        ("of: base", "of: bases", "row '+ MRF': there is no row 'bases', nearest: base"),
        ("from: pixels", "from: pixel", "row 'all labels': there is no regime 'pixel', nearest: pixels"),
        ("config: tv,", "config: tvv,", "there is no config 'tvv', nearest: tv"),
        ("gap,", "gapp,", "there is no column 'gapp', nearest: gap"),
        ("  TV: {over", "  TVV: {over", "search: there is no row 'TVV', nearest: TV"),
        ("over: {model.tv_weight: [0.1, 0.3]}", "over: {model.tv_weight: 0.1}", "needs a list of values, got 0.1"),
        ("over: {model.postprocess.mu", "over: {model.tv_weight", "is searched over post-processing alone"),
        ("over: {model.tv_weight", "over: {model.start", "row 'TV' does not say what was chosen for model.start"),
        ("score: last", "score: first", "score is best or last, got 'first'"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "some different numbers are needed"),
        ("model.tv_weight: 0.3", "seed_everything: 3", "`seed_everything` is no value of a row"),
        ("  TV:", "  Base:", "would share a folder"),
        ("{config: supervised}", "{}", "give either `config`, its method, or `of`"),
        ("rows:", "rows: {", "is not valid YAML"),
    ],
)
def test_a_wrong_study_is_named_in_one_line(old, new, said, tmp_path):
    assert old in FEW
    file = write(tmp_path, FEW.replace(old, new, 1))
    text = weakseg("study", file, "--dry-run", expect=1)
    assert said in text
    assert len(text.splitlines()) == 1


def test_two_post_processings_of_one_kind_are_refused(tmp_path):
    more = "  + more: {of: base, test: {model.postprocess.kind: mrf, model.postprocess.mu: 9.0}}\nsearch:"
    file = write(tmp_path, FEW.replace("search:", more))
    assert "both test 'base' with mrf" in weakseg("study", file, "--dry-run", expect=1)


def test_a_wrong_command_is_one_line(tmp_path, monkeypatch):
    assert "there is no study 'quikstart', nearest: quickstart" in weakseg("study", "quikstart", expect=1)
    assert "there is no study nowhere/a.yaml" in weakseg("study", "nowhere/a.yaml", expect=1)
    assert "no option '--job', nearest: --jobs" in weakseg("study", "quickstart", "--job", "2", expect=1)
    assert "belong together" in weakseg("study", "quickstart", "--row", "TV", expect=1)
    assert "--jobs is a number of runs" in weakseg("study", "quickstart", "--jobs", "0", expect=1)
    wrong = weakseg(
        "study", "weizmann_scribbles", "--data", tmp_path, "--row", "scribbles/TVV", "--seed", "0", expect=1
    )
    assert f"needs {tmp_path}/weizmann_horse_db: set $WEAKSEG_DATA" in wrong
    (tmp_path / "weizmann_horse_db").mkdir()
    monkeypatch.setenv("WEAKSEG_DATA", str(tmp_path))
    monkeypatch.setenv("WEAKSEG_WEIGHTS", str(tmp_path))
    assert "mobilenet_v2_imagenet_fp16.safetensors: set $WEAKSEG_WEIGHTS" in weakseg("study", "weizmann_few", expect=1)
    monkeypatch.delenv("WEAKSEG_WEIGHTS")
    wrong = weakseg("study", "weizmann_scribbles", "--row", "scribbles/dense crf", "--seed", "0", expect=1)
    assert "there is no row 'scribbles/dense crf', nearest: scribbles/dense CRF" in wrong
    assert "quickstart" in weakseg("study")


# Killed, failed, stopped -------------------------------------------------------------------------------------------


def metrics(run_dir):
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows(run_dir / "metrics.csv")]


ONE = f"""
title: One run
regimes: {{pixels: {{configs: [{TINY}]}}}}
baseline: base
rows: {{base: {{config: supervised}}}}
table: {{columns: [score]}}
"""


def start(file, folder, *extra):
    """A study in a process group of its own. A shell's background jobs, as tests may be, ignore SIGINT."""
    words = [sys.executable, "-m", "experiments.cli", "study", str(file), "--runs", str(folder), *extra]
    return popen(words)


def popen(words):
    return subprocess.Popen(
        words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for(process, is_there):
    while not is_there():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)


def test_killed_during_a_run_and_continued_it_leaves_what_the_unbroken_run_does(tmp_path, at_once):
    """The whole process group is killed: study and run."""
    file = write(tmp_path, ONE, "one")
    run = tmp_path / "runs/one/pixels/base/seed0"
    steps = ["--", "--trainer.max_steps=24"]
    first = start(file, tmp_path / "runs", "--output", str(tmp_path / "results"), *steps)
    wait_for(first, (run / "checkpoints" / "last.ckpt").exists)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (run / "summary.json").exists(), "it was through before it was killed"
    weakseg("study", file, "--runs", tmp_path / "runs", "--output", tmp_path / "results", *steps)
    fit_tiny(tmp_path / "whole", "--trainer.max_steps", "24")
    assert metrics(run) == metrics(tmp_path / "whole")


class Task:
    """A run of a script: a Runner needs no more of it."""

    def __init__(self, folder, script):
        self.folder, self.script = folder, script

    def missing(self):
        return [] if (self.folder / "summary.json").exists() else [[self.script, str(self.folder)]]


FINISH = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.mkdir(); (p / 'summary.json').write_text('{}')"


def test_a_failed_run_is_reported_and_the_others_are_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "PROGRAM", (sys.executable, "-c"))
    fail = "print('some words'); raise SystemExit('weakseg: error: wrong, nearest: right')"
    tasks = [Task(tmp_path / "bad", fail), Task(tmp_path / "a", FINISH), Task(tmp_path / "b", FINISH)]
    study = Runner(tasks, 1)
    assert study.run() == [tmp_path / "bad"]
    text = capsys.readouterr().out
    assert f"[1/3] failed (wrong, nearest: right; see {tmp_path}/bad.log): {tmp_path}/bad" in text
    assert [line.split("] ")[1].split(" ")[0].strip(":") for line in text.splitlines()] == ["failed", "done", "done"]
    assert "left)" in text
    assert study.done() == 3


def test_a_module_of_the_working_directory_is_not_taken_for_ours(tmp_path, monkeypatch):
    """`python -m` puts the working directory first on the module path; no process of a study does."""
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").write_text("open('mark', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = [*runner.PROGRAM, "--help"]
    subprocess.run(words, capture_output=True)
    assert (tmp_path / "mark").exists()  # what is to be avoided
    (tmp_path / "mark").unlink()
    told = subprocess.run(words, capture_output=True, text=True, env=runner.with_share(1))
    assert "weakseg study" in told.stdout
    assert not (tmp_path / "mark").exists()


def test_several_runs_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "PROGRAM", (sys.executable, "-c"))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    script = f"{FINISH}; import os; (p / 'threads').write_text(os.environ.get('OMP_NUM_THREADS', 'none'))"
    for jobs, threads in ((1, "none"), (2, "4")):
        tasks = [Task(tmp_path / f"{jobs}{name}", script) for name in "ab"]
        assert Runner(tasks, jobs).run() == []
        assert {(task.folder / "threads").read_text() for task in tasks} == {threads}


# A study whose runs are scripts, in a process of its own: python -c SCRIPTED FOLDER FILE SCRIPT...
SCRIPTED = """
import sys
from pathlib import Path
sys.path[:0] = ["tests"]
from test_study import Task
from experiments.cli import main
from experiments.studies import plan, runner
folder, file, *scripts = sys.argv[1:]
runner.PROGRAM = (sys.executable, "-c")
plan.all_runs = lambda study, place: [Task(Path(folder, str(n)), script) for n, script in enumerate(scripts)]
plan.check_options = lambda run: None
import experiments.cli.study as study
study.write = lambda *_: None
sys.exit(main(["study", file, "--runs", folder]))
"""


def scripted(folder, *scripts):
    folder.mkdir(exist_ok=True)
    return popen([sys.executable, "-c", SCRIPTED, str(folder), str(write(folder, ONE, "one")), *scripts])


@pytest.mark.parametrize("how", slow_but_for([signal.SIGTERM, signal.SIGINT], signal.SIGINT))
def test_stopping_the_study_stops_its_runs_and_starts_no_more(how, tmp_path):
    sleep = "import time, os; print(os.getpid(), flush=True); time.sleep(60)"
    study = scripted(tmp_path / "runs", sleep, sleep)
    log = log_file(tmp_path / "runs" / "0")
    wait_for(study, lambda: log.exists() and log.read_text())
    study.send_signal(how)
    text, _ = study.communicate(timeout=60)
    assert study.returncode == 1
    assert "stopped; the same command continues" in text
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)
    assert not log_file(tmp_path / "runs" / "1").exists()


def test_a_run_that_outlived_its_study_is_waited_for(tmp_path, monkeypatch, capsys):
    """The study alone is killed; its run goes on, and a second study must not write to the same folder meanwhile."""
    folder = tmp_path / "runs"
    script = f"print(1, flush=True); import time; time.sleep(5); {FINISH}"
    first = scripted(folder, script)
    log = log_file(folder / "0")
    wait_for(first, lambda: log.exists() and log.read_text())
    first.kill()
    first.wait()
    monkeypatch.setattr(runner, "PROGRAM", (sys.executable, "-c"))
    assert Runner([Task(folder / "0", script)], 1).run() == []
    text = capsys.readouterr().out
    assert "another process makes" in text
    assert "[1/1] finished before" in text
    assert log.read_text() == "1\n"


def test_progress_counts_steps_and_time_left_is_that_of_what_was_done_here(tmp_path):
    assert share_done(tmp_path) == 0
    (tmp_path / "config.yaml").write_text("trainer: {max_steps: 40}\n")
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss\n")
    assert share_done(tmp_path) == 0
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss\n9,0,1.5\n")
    assert share_done(tmp_path) == 0.25
    (tmp_path / "summary.json").write_text("{}")
    assert share_done(tmp_path) == 1
    # 2 of 8 runs were done before, 2 more took 100 s: 4 are left.
    assert remaining(100, before=2, now=4, total=8) == "03:20"
    assert remaining(100, before=2, now=2, total=8) == "?"


# The shipped studies -----------------------------------------------------------------------------------------------


# Methods that learn from tags alone have another kind of labels, and another score.
FROM_PIXELS = {name for name in methods.CLASSES if "pixels" in getattr(methods, name).supervision}


def test_the_study_of_all_methods_has_all_methods_and_one_kind_of_labels():
    study = read_study("synthetic_all")
    named = {}
    for row in study.rows.values():
        parts = [flatten(yaml.safe_load(text)) for name in row.configs for text in compose(find_config(name))]
        named[row.name] = next(part["model.class_path"] for part in parts[::-1] if "model.class_path" in part)
    assert {*named.values()} == FROM_PIXELS, "experiments/studies/synthetic_all.yaml: a row of every method"
    assert len(named) == len(FROM_PIXELS)
    assert len(study.regimes) == 1
    assert study.seeds == (0, 1)


@pytest.mark.parametrize("name", [*shipped()])
def test_a_shipped_study_names_configs_and_options_that_there_are(name, tmp_path):
    """Every value of every row and point: its option is one of the class that the row trains."""
    from experiments.cli.messages import class_options

    study, place = read_study(name), find_place(tmp_path, None, None)
    for run in all_runs(study, place):
        configs = [word for option, word in zip(run.fit, run.fit[1:], strict=False) if option == "--config"]
        parts = [flatten(yaml.safe_load(text)) for one in configs for text in compose(find_config(one))]
        paths = {key: value for part in parts for key, value in part.items() if key.endswith(".class_path")}
        for key in (word[2:].partition("=")[0] for word in run.fit if word.startswith(("--model.", "--data."))):
            kind, _, option = key.partition(".")
            package = {"model": methods, "data": __import__("datamodules")}[kind]
            owner = getattr(package, paths[f"{kind}.class_path"])
            if not option.startswith("optimizer."):
                assert option in class_options(f"{owner.__module__}.{owner.__qualname__}"), (run.name, key)


@pytest.mark.parametrize("name", [*shipped()])
def test_an_agent_of_w_and_b_makes_the_run_that_the_study_makes(name, tmp_path):
    """By W&B's own functions, from the printed sweep to the words of `weakseg fit`."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    study = read_study(name)
    printed = weakseg("study", name, "--wandb-sweep", "--runs", tmp_path, "--", "--wandb=offline")
    content = yaml.safe_load(printed)
    assert content["parameters"]["row"]["values"] == [*named_rows(study)]
    assert content["parameters"]["seed"]["values"] == [*study.seeds]
    place = find_place(tmp_path, None, None, ["--wandb=offline"])
    for row in named_rows(study):
        for seed in study.seeds:
            made = create_sweep_command_args({"args": {"row": {"value": row}, "seed": {"value": seed}}})
            made["program"] = [content["program"]]
            words = [part for word in create_sweep_command(content["command"])
                     for part in (made[word[2:-1]] if word.startswith("${") else [word])]  # fmt: skip
            assert words[:3] == ["weakseg", "study", name]
            assert words[-2:] == ["--", "--wandb=offline"]
            options = make_parser().parse_args(words[2:-2])
            run = find_run(study, place, options.row, options.seed)
            assert options.runs == tmp_path
            assert run in all_runs(study, place)
            assert run.fit[-2:] == (f"--seed_everything={seed}", "--wandb=offline")


def test_a_sweep_of_a_file_is_called_by_its_path(tmp_path):
    file = write(tmp_path)
    options = make_parser().parse_args([str(file)])
    content = yaml.safe_load(sweep(read_study(str(file)), options, find_place(Path("runs"), None, None)))
    assert content["command"] == ["${program}", "study", str(file), "${args}"]
    assert content["parameters"]["row"]["values"] == [
        "pixels/base", "clicks/base", "pixels/TV", "pixels/all labels"]  # fmt: skip


def test_runs_of_an_agent_have_their_own_directories_and_the_agents_id(tmp_path, monkeypatch):
    """The agent's environment; offline, for want of a server."""
    write(tmp_path)
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    for name, seed in (("a1", 0), ("b2", 1)):
        monkeypatch.setenv("WANDB_RUN_ID", name)
        few(tmp_path, "--row=pixels/base", f"--seed={seed}", extra=["--wandb=offline"])
        run = tmp_path / f"runs/few/pixels/base/seed{seed}"
        assert (run / "wandb" / "run_id").read_text() == name
        assert sorted(summary(run)["test"]) == ["last", "last+mrf"]


def test_runs_of_a_sweep_of_ones_own_that_differ_in_a_weight_have_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    for name in ("a1", "b2"):
        monkeypatch.setenv("WANDB_RUN_ID", name)
        weakseg("fit", "--config", TINY, "--wandb=offline", *SHORT)
    folders = sorted(path.parent for path in tmp_path.glob("runs/*/*/*/summary.json"))
    assert [path.name.rsplit("-", 1)[1] for path in folders] == ["a1", "b2"]
    assert [(path / "wandb" / "run_id").read_text() for path in folders] == ["a1", "b2"]


def test_tables_and_studies_do_not_know_the_command():
    """The verbs of `cli` import them, never the reverse."""
    for folder in ("compare", "studies"):
        for file in (ROOT / "experiments" / folder).glob("*.py"):
            assert "experiments.cli" not in re.sub(r'"experiments\.cli"', "", file.read_text()), file


@pytest.mark.slow
def test_a_study_of_all_methods_from_start_to_report(tmp_path, at_once):
    """Killed once on the way, it ends in the table of an unbroken one."""
    small = {"trainer.max_steps": 6, "trainer.val_check_interval": 3, "checkpoint_every": 2,
             "trainer.log_every_n_steps": 1, "data.num_workers": 0, "data.train": 24, "data.val": 4,
             "data.test": 6}  # fmt: skip
    extra = ["--", *as_words(small)]
    output = ["--output", str(tmp_path / "broken")]
    first = start("synthetic_all", tmp_path / "broken", *output, *extra)
    wait_for(first, lambda: [*tmp_path.glob("broken/synthetic_all/*/*/seed1/checkpoints/last.ckpt")])
    os.killpg(first.pid, signal.SIGKILL)
    tables = {}
    for name in ("broken", "whole"):
        weakseg("study", "synthetic_all", "--runs", tmp_path / name, "--output", tmp_path / name, *extra)
        assert {row["row"] for row in rows(tmp_path / name / "synthetic_all.csv")} == FROM_PIXELS
        report = tmp_path / name / "report"
        printed = weakseg("compare", tmp_path / name / "synthetic_all", "--test", "--output", report)
        shown = [line for line in printed.splitlines() if line.startswith("| ") and " 2 |" in line]
        assert {row.split()[1] for row in shown} == FROM_PIXELS
        assert printed.count("Synthetic, pixels-0.002\n") == 1
        assert (report / "report.html").stat().st_size > 100_000
        costs = ("seconds", "images_per_s", "peak_memory_gb")
        tables[name] = [
            [{k: v for k, v in row.items() if k not in costs} for row in rows(file)]
            for file in (report / "table.csv", tmp_path / name / "synthetic_all.csv")
        ]
    assert tables["broken"] == tables["whole"]


# Jobs of a cluster -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "told", "said"),
    [
        (
            "partitoin: gpu",
            {},
            "cluster.yaml has an option 'partitoin', nearest: partition: jobs have partition, account",
        ),
        ("[1]", {}, "must hold `name: value` pairs"),
        ("a: b: c", {}, "is not valid YAML"),
        ("time: soon", {}, "cluster.time: .*valid integer.*, got 'soon'"),
        ("", {"cpus": "0"}, "cpus is at least 1, got 0"),
        ("time: 1", {"warning": "90"}, r"warning \(90 s\) is less than the time limit, 1 minutes"),
    ],
)
def test_a_wrong_option_of_a_job_is_one_line(file, told, said, tmp_path):
    (tmp_path / "cluster.yaml").write_text(file)
    with pytest.raises(ValueError, match=said) as caught:
        read_cluster(told, tmp_path / "cluster.yaml")
    assert "\n" not in str(caught.value)


def test_options_of_jobs_are_those_of_the_command_over_those_of_the_file(tmp_path):
    assert [*JOBS] == [field.name for field in fields(Cluster)]
    (tmp_path / "cluster.yaml").write_text("partition: gpu\ntime: 60\nsetup: [module load cuda]\n")
    options, extra = parse(
        ["few.yaml", "--cluster", "slurm", "--cluster.time", "30", "--cluster.memory=8", "--", "--a", "1"]
    )
    found = read_cluster(options.of_jobs, tmp_path / "cluster.yaml")
    assert found == Cluster(partition="gpu", time=30, memory=8.0, setup=("module load cuda",))
    assert extra == ["--a", "1"]
    with pytest.raises(ValueError, match="give --cluster slurm, or --cluster local"):
        parse(["few.yaml", "--cluster.time", "30"])


def test_without_slurm_a_study_on_it_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "few.yaml").write_text(FEW)
    words = ["study", tmp_path / "few.yaml", "--runs", tmp_path / "runs"]
    assert "--cluster slurm needs SLURM's commands" in weakseg(*words, "--cluster", "slurm", expect=1)
    assert not (tmp_path / "runs").exists()


def job(tmp_path, monkeypatch, status, states=("RUNNING",)):
    """An element whose commands end with a status, as a job in such a state."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(element, "slurm_states", lambda jobs: dict.fromkeys(jobs, next(iter(states))))
    sent = []
    monkeypatch.setattr(element.os, "kill", lambda pid, number: sent.append(number))
    run = Run("a/b", "a", "b", 0, tmp_path / "seed0", (), {})
    made = Element(run, "last", [], minutes=1, attempts=2, cpus=1)

    def call(words, log):
        log.write("weakseg: error: no such thing\n")
        log.flush()
        return status

    monkeypatch.setattr(made, "call", call)
    return made, sent


def test_a_command_that_was_stopped_is_queued_again_unless_the_job_is_cancelled(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    for status in (75, -signal.SIGTERM, -signal.SIGUSR2):
        made, sent = job(tmp_path, monkeypatch, status)
        with pytest.raises(RuntimeError, match="no such thing"):  # the handler of a real signal does not come back
            made()
        assert sent == [signal.SIGUSR2]
    for status, state in ((75, "COMPLETING"), (1, "RUNNING"), (-signal.SIGKILL, "RUNNING")):
        made, sent = job(tmp_path, monkeypatch, status, [state])
        with pytest.raises(RuntimeError, match=rf"no such thing \(status {status}\)"):
            made()
        assert sent == []


def test_a_job_that_reaches_its_limit_again_and_again_without_a_step_is_given_up(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    made, _ = job(tmp_path, monkeypatch, 0)
    steps = iter([5, 5, 5, 9, 9, 9, 9])
    monkeypatch.setattr(runner, "steps_done", lambda folder: (next(steps), 10))
    made.started = time.monotonic() - 59
    assert made.checkpoint().function is made  # 5 steps
    assert made.checkpoint() is not None  # none, once
    made.started = time.monotonic()
    assert made.checkpoint() is not None  # none, but it was preempted before its limit
    made.started -= 59
    assert made.checkpoint() is not None  # 4 steps: as new
    assert made.checkpoint() is not None
    assert made.checkpoint() is None


def test_an_element_is_read_without_the_packages_that_take_long():
    """A signal in that time would end the job."""
    code = "import sys, experiments.studies.element; print({'torch', 'numpy', 'yaml'} & {*sys.modules} or '')"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "\n"


def test_squeue_is_read_by_id_and_by_element_of_an_array(tmp_path, monkeypatch):
    (tmp_path / "squeue").write_text("#!/bin/sh\nprintf '12_0|13|RUNNING\\n12_1|14|CANCELLED\\n'\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert slurm_states(["12_0", "12_1"]) == {
        "12_0": "RUNNING",
        "13": "RUNNING",
        "12_1": "CANCELLED",
        "14": "CANCELLED",
    }
    (tmp_path / "squeue").write_text(
        "#!/bin/sh\necho slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1\n"
    )
    with pytest.raises(OSError, match=r"SLURM does not answer: .*Unable to contact"):
        slurm_states(["12_0"])


def test_a_study_in_jobs_without_a_scheduler_makes_runs_as_any_other(tmp_path, monkeypatch):
    """Jobs of submitit on this machine; each is a process of its own that runs the command."""
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text(ONE)
    before = weakseg("study", "one.yaml", "--status")
    assert before.split() == ["row", "seed", "state", "pixels/base", "0", "missing"]
    said = weakseg("study", "one.yaml", "--cluster", "local", "--output", "page")
    assert "page:" in said
    assert weakseg("study", "one.yaml", "--status").split()[3:] == ["pixels/base", "0", "done"]
    fit_tiny(tmp_path / "alone", "--config", "supervised")
    assert_same_run(Path("runs/one/pixels/base/seed0"), tmp_path / "alone")
    shutil.rmtree("runs/one/pixels")
    Path("one.yaml").write_text(ONE.replace("config: supervised", "config: supervised, set: {model.optimizer.lr: -1}"))
    said = weakseg("study", "one.yaml", "--cluster", "local", "--output", "page", expect=1)
    assert re.search(r"pixels/base  0     failed  .*learning rate.*seed0.log", said), said


ONE = f"""
title: One run
regimes: {{pixels: {{configs: [{TINY}]}}}}
baseline: base
rows: {{base: {{config: supervised}}}}
"""
