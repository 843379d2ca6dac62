"""Steps that need each other, and those of the benchmark from tags to masks."""

from argparse import Namespace
from itertools import product
from pathlib import Path
from threading import Event

from experiments.benchmarks.chain import Step, chosen, make, work
from experiments.benchmarks.tags import AALR, AFFINITY, BOUND, MAPS, OF_MAPS, Bed, together


def step(folder: Path, name: str, needs: tuple[str, ...] = (), fails: bool = False) -> Step:
    """Copies the files of what it needs behind its name, or leaves with a word."""
    read = "+".join(f"open(r'{folder / need}').read()" for need in needs) or "''"
    code = (
        "raise SystemExit('too bad')"
        if fails
        else f"text = '{name}' + {read}; open(r'{folder / name}', 'w').write(text)"
    )
    return Step(name, lambda: [["-c", code]], folder / name, needs)


def test_steps_wait_for_what_they_need_and_are_made_once(tmp_path, capfd):
    steps = [step(tmp_path, "c", ("a", "b")), step(tmp_path, "a"), step(tmp_path, "b", ("a",))]
    assert work(steps, tmp_path / "logs", jobs=3) == []
    assert (tmp_path / "c").read_text() == "caba"
    (tmp_path / "b").write_text("kept")
    (tmp_path / "c").unlink()
    assert work(steps, tmp_path / "logs", jobs=1) == []
    assert (tmp_path / "c").read_text() == "cakept"
    assert "1 of 1 made" in capfd.readouterr().out


def test_a_step_that_is_stopped_between_two_commands_begins_no_other(tmp_path):
    stopped = Event()

    def commands():
        yield ["-c", f"open(r'{tmp_path / 'one'}', 'w')"]
        stopped.set()
        yield ["-c", f"open(r'{tmp_path / 'two'}', 'w')"]

    assert not make(Step("x", commands, tmp_path / "two"), tmp_path, 1, set(), stopped)
    assert [path.name for path in tmp_path.iterdir() if not path.suffix] == ["one"]


def test_a_failed_step_stops_only_those_that_need_it(tmp_path, capfd):
    steps = [step(tmp_path, "a", fails=True), step(tmp_path, "b", ("a",)), step(tmp_path, "c")]
    assert work(steps, tmp_path / "logs", jobs=1) == ["a"]
    said = capfd.readouterr().out
    assert "failed: a (too bad; see" in said
    assert "not made: b" in said
    assert {path.name for path in tmp_path.iterdir()} == {"logs", "c"}


def test_what_is_asked_for_brings_what_it_needs(tmp_path):
    steps = [
        step(tmp_path, "one"),
        step(tmp_path, "two", ("one",)),
        step(tmp_path, "three", ("two",)),
        step(tmp_path, "x"),
    ]
    assert [one.name for one in chosen(steps, ["three"])] == ["one", "two", "three"]
    assert chosen(steps, []) == steps


def test_a_step_that_does_not_make_its_file_or_has_no_commands_fails(tmp_path, capfd):
    def none():
        raise FileNotFoundError("no such threshold")

    steps = [Step("a", none, tmp_path / "a"), Step("b", lambda: [["-c", "print('nothing')"]], tmp_path / "b")]
    assert work([*steps, step(tmp_path, "c", ("b",))], tmp_path / "logs", jobs=1) == ["a", "b"]
    said = capfd.readouterr().out
    assert "failed: a (FileNotFoundError: no such threshold" in said
    assert "not made: c" in said


def test_a_run_that_starts_from_another_goes_on_once_it_has_a_checkpoint(tmp_path):
    bed = Bed(Namespace(output=tmp_path, root=tmp_path, weights=tmp_path, more=[]), 0)

    def start():
        words = bed.fit("a", after=tmp_path / "best.ckpt")
        return words[words.index(bed.run("a")) + 1 : words.index("--trainer.enable_progress_bar")]

    assert start() == ["--init_from", tmp_path / "best.ckpt"]
    (bed.run("a") / "checkpoints").mkdir(parents=True)
    assert start() == ["--init_from", tmp_path / "best.ckpt", "--overwrite"]
    (bed.run("a") / "checkpoints" / "last.ckpt").touch()
    assert start() == ["--resume", "auto"]


def test_every_step_from_tags_to_masks_comes_after_what_it_needs(tmp_path):
    options = Namespace(output=tmp_path, images=2, root=tmp_path, weights=tmp_path, more=[])
    seen: set[str] = set()
    for one in Bed(options, 0).steps():
        assert one.name not in seen
        assert {*one.needs} <= seen, one.name
        seen.add(one.name)
    assert len({one.made for one in Bed(options, 0).steps()}) == len(seen)


def test_what_a_table_has_is_not_measured_again_but_where_something_else_needs_it(tmp_path):
    options = Namespace(output=tmp_path, images=2, root=tmp_path, weights=tmp_path, more=[])

    def left(*missing):
        names = [*MAPS, AFFINITY, BOUND, *AALR]
        labels, splits = [*OF_MAPS.values(), ""], ["maps on val", "maps on train", "labels of train", "network on test"]
        known = {(*key, 0, score) for key in product(names, labels) for score in splits} - {*missing}
        return [one.name for one in chosen([*Bed(options, 0, known).steps()], [])]

    assert left() == []
    assert left(("CAM", "walk", 0, "network on test")) == [
        "0: CAM", "0: CAM, val", "0: CAM, walk", "0: CAM, learned by walk",
    ]  # fmt: skip
    assert left(("AA&LR", "", 0, "network on test")) == ["0: AA&LR"]
    needed = ["0: CAM", "0: seeds", f"0: {AFFINITY}", f"0: {AFFINITY}, walk"]
    assert left((AFFINITY, "walk", 0, "labels of train")) == needed
    assert left(("CAM", OF_MAPS["none"], 0, "labels of train")) == ["0: CAM", "0: CAM, none"]
    assert len(left(*product(["CPN"], [*OF_MAPS.values(), ""], [0], ["maps on val"]))) == 2


def test_measured_rows_take_the_place_of_recorded_ones():
    told = {"labels": "", "seed": 0, "score": "network on test"}
    rows = [{**told, "what": "AA&LR", "percent": 30.0}, {**told, "what": "CAM", "percent": 20.0}]
    recorded = [{**told, "what": BOUND, "percent": 50.0}, {**told, "what": "CAM", "percent": 10.0}]
    found = together(rows, [*recorded, {**told, "what": "CAM", "seed": 1, "percent": 11.0}])
    assert [(row["what"], row["seed"], row["percent"]) for row in found] == [
        ("CAM", 0, 20.0), (BOUND, 0, 50.0), ("AA&LR", 0, 30.0), ("CAM", 1, 11.0),
    ]  # fmt: skip
