"""`weakseg annotate`: the masks that it writes, what its server refuses, and the page in a real browser."""

import argparse
import http.client
import json
import os
import re
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from common.ops.batch import IGNORE
from conftest import TINY, draw_folder, on_folder, snapshot, weakseg
from datamodules.scenes import CLASSES
from datamodules.sets.folder import Folder
from drawing_desk import NAME, photos, scribble, served
from experiments.annotate import server as serving
from experiments.annotate.drawings import NO_MASK, Drawings, Stale, from_runs, to_runs
from experiments.annotate.suggestion import next_image, uncertainty
from experiments.annotate.training import Training
from experiments.cli.annotate import open_desk


@pytest.fixture
def root(tmp_path):
    return photos(tmp_path / "photos")


@pytest.fixture
def drawings(root):
    return Drawings(root, CLASSES)


# Masks -------------------------------------------------------------------------------------------------------------


def test_runs_are_the_mask_again():
    rng = np.random.default_rng(0)
    for mask in (
        rng.integers(0, 3, (7, 9)).astype(np.uint8),
        np.full((2, 3), 255, np.uint8),
        np.zeros((1, 1), np.uint8),
    ):
        runs = to_runs(mask)
        assert sum(runs[1::2]) == mask.size
        assert [v for v, n in zip(runs[::2], runs[1::2], strict=True) for _ in range(n)] == mask.ravel().tolist()
        np.testing.assert_array_equal(from_runs(runs, mask.shape), mask)


@pytest.mark.parametrize(
    "runs",
    [None, "1,4", [], [1], [1, 3], [1, 5], [1, 4, 2], [1, -4, 1, 8], [1, 0, 1, 4], [256, 4], [-1, 4], [1.0, 4],
     [1, 4.0], [True, 4], [[1, 4]], [1, "4"], [0, 10**18], {"0": 4}],
)  # fmt: skip
def test_runs_that_are_none_are_refused(runs):
    with pytest.raises(ValueError, match="not the runs of a mask"):
        from_runs(runs, (2, 2))


def test_what_is_written_is_what_folder_reads(drawings, root):
    for number, name in enumerate(drawings.images):
        version = drawings.write(name, scribble(drawings, name, number % len(CLASSES)), NO_MASK)
        assert version == drawings.mask(name)[1] != NO_MASK
    data = Folder(str(root))
    assert data.class_names == [*CLASSES]
    for number, name in enumerate(drawings.images):
        np.testing.assert_array_equal(data.mask(name), scribble(drawings, name, number % len(CLASSES)))
    with Image.open(root / "masks" / f"{NAME}.png") as picture:
        assert picture.mode == "P"
    assert not [path for path in root.rglob(".*") if path.is_file()]  # no scratch is left


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("size", [(20, 30), (24, 24)])
def test_turned_photos_are_drawn_on_upright(tmp_path, turn, size):
    (tmp_path / "images").mkdir()
    tag = Image.Exif()
    tag[0x0112] = turn
    for number in range(5):
        rng = np.random.default_rng(number)
        picture = Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8))
        picture.save(tmp_path / "images" / f"{number}.jpg", exif=tag)
    drawings = Drawings(tmp_path, ["ground", "thing"])
    for name in drawings.images:
        assert drawings.image(name).shape[:2] == drawings.size(name)
        drawings.write(name, scribble(drawings, name), NO_MASK)
    data = Folder(str(tmp_path))
    np.testing.assert_array_equal(data.mask("0"), scribble(drawings, "0"))
    assert data.mask("0").shape == data.image("0").shape[:2]


@pytest.mark.parametrize(
    "lines",
    [["a", "b", "c"], ["a 0 0 0", "b 224 224 192", "c"], ["a 128 0 0", "b", "c 0 128 0"],
     ["a", "b 0 0 0", "c 10 10 10"], ["a", "b", "c", "void 224 224 192"], ["a", "b", "c", "void 0 0 0"],
     ["a", "b", "c", "void 128 0 0"]],
)  # fmt: skip
def test_colours_of_the_list_never_change_a_class(root, lines):
    (root / "classes.txt").write_text("\n".join(lines))
    drawings = Drawings(root)
    mask = np.full(drawings.size(NAME), IGNORE, np.uint8)
    for used in ((0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)):
        mask[:] = IGNORE
        for label in used:
            mask[label] = label
        drawings.write(NAME, mask, drawings.version(NAME))  # raises if it would be read otherwise
        np.testing.assert_array_equal(drawings.mask(NAME)[0], mask)


def test_a_stale_write_is_refused_also_from_another_process(drawings, root):
    other = Drawings(root)  # another process: nothing is shared but the files
    first = drawings.write(NAME, scribble(drawings), NO_MASK)
    before = snapshot(root)
    with pytest.raises(Stale, match="changed elsewhere"):
        other.write(NAME, scribble(drawings, label=2), NO_MASK)
    assert snapshot(root) == before
    second = other.write(NAME, scribble(drawings, label=2), first)
    with pytest.raises(Stale):
        drawings.write(NAME, scribble(drawings, label=3), first)
    assert drawings.version(NAME) == second
    np.testing.assert_array_equal(drawings.mask(NAME)[0], scribble(drawings, label=2))


@pytest.mark.parametrize("locks", [True, False])
def test_of_many_writers_at_once_one_wins(locks, root, monkeypatch):
    """Of several processes, or of one where the file system locks no folder."""
    names = [Drawings(root, CLASSES)] * 8
    if locks:
        names = [Drawings(root) for _ in names]
    else:
        monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError("no locks")))
    won = []

    def write(label, one):
        with suppress(Stale):
            won.append((label, one.write(NAME, scribble(one, label=label % 6), NO_MASK)))

    threads = [threading.Thread(target=write, args=pair) for pair in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((label, version),) = won
    assert names[0].version(NAME) == version
    np.testing.assert_array_equal(names[0].mask(NAME)[0], scribble(names[0], label=label % 6))


def test_a_write_that_fails_leaves_the_mask_as_it_was(drawings, root, monkeypatch):
    version = drawings.write(NAME, scribble(drawings), NO_MASK)
    before = snapshot(root)

    def full(self, path, kind):
        path.write_bytes(b"\x89PNG half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        drawings.write(NAME, scribble(drawings, label=2), version)
    assert snapshot(root) == before


def test_erasing_all_removes_the_mask(drawings, root):
    version = drawings.write(NAME, scribble(drawings), NO_MASK)
    assert drawings.is_labelled(NAME)
    assert drawings.write(NAME, np.full(drawings.size(NAME), IGNORE, np.uint8), version) == NO_MASK
    assert not (root / "masks" / f"{NAME}.png").exists()
    assert not drawings.is_labelled(NAME)


def test_masks_of_others_are_read_or_refused_and_stay(tmp_path):
    root = draw_folder(tmp_path / "data")
    shape = {"label": "ground", "shape_type": "rectangle", "points": [[1, 1], [9, 9]]}
    sizes = {"imageHeight": 31, "imageWidth": 44}
    (root / "masks" / "0.png").unlink()
    (root / "images" / "0.json").write_text(json.dumps({"version": "5.5.0", "shapes": [shape], **sizes}))
    Image.open(root / "masks" / "1.png").save(root / "masks" / "1.tif")
    (root / "masks" / "1.png").unlink()
    Image.fromarray(np.full((29, 29), 7, np.uint8)).save(root / "masks" / "2.png")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(root / "masks" / "3.png")
    (root / "masks" / "4.png").write_bytes(b"no picture")
    (root / "masks" / "5.png").rename(root / "masks" / "5.npy")
    before = snapshot(root)
    drawings = Drawings(root)
    reasons = {"0": "0.json has the labels", "1": "1.tif is the mask of 1 and no PNG", "2": "7 at row 0",
               "3": "replace one of them", "4": "cannot be read", "5": "5.npy is the mask"}  # fmt: skip
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=reason):
            drawings.mask(name)
        with pytest.raises(ValueError, match="|".join([reason, "changed elsewhere"])):
            drawings.write(name, scribble(drawings, name), NO_MASK)
        assert drawings.is_labelled(name)
    assert snapshot(root) == before
    mask, version = drawings.mask("6")
    np.testing.assert_array_equal(mask, np.asarray(Image.open(root / "masks" / "6.png")))
    mask = mask.copy()
    mask[10, 10] = 2
    drawings.write("6", mask, version)
    np.testing.assert_array_equal(drawings.mask("6")[0], mask)


def test_black_and_white_masks_are_refused_their_white_may_be_a_class(root):
    drawings = Drawings(root, ["ground", "horse"])
    path = root / "masks" / f"{NAME}.png"
    path.parent.mkdir(parents=True)
    mask = np.full(drawings.size(NAME), IGNORE, np.uint8)
    mask[:9] = 0
    Image.fromarray(mask).save(path)
    with pytest.raises(ValueError, match="is 255 'horse' or no label"):
        drawings.mask(NAME)
    path.unlink()
    drawings.write(NAME, mask, NO_MASK)  # one's own is indexed: 255 is no label
    np.testing.assert_array_equal(drawings.mask(NAME)[0], mask)


def test_folders_that_cannot_be_drawn_in_are_refused(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="images does not exist"):
        Drawings(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="--classes background,horse"):
        Drawings(root)
    for classes, reason in (
        (["one"], "at least 2"),
        (["a", "a"], "repeats"),
        (["a", "b 1 2 3"], "plainer"),
        (["", "b"], ""),
    ):
        with pytest.raises(ValueError, match=reason):
            Drawings(root, classes)
        assert not (root / "classes.txt").exists()
    Drawings(root, ["a", "b"])
    Drawings(root, ["a", "b"])
    with pytest.raises(ValueError, match="leave --classes out"):
        Drawings(root, ["a", "c"])
    names = [path.name for path in (root / "images" / "day0").iterdir()]
    images = [{"id": 1, "file_name": f"day0/{names[0]}", "height": 64, "width": 64}]
    box = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "segmentation": [[1, 1, 9, 1, 9, 9]],
        "bbox": [1, 1, 8, 8],
        "area": 32,
    }
    content = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "a"}]}
    (root / "coco.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"coco\.json holds drawings"):
        Drawings(root)
    assert not (root / "masks").exists()


def test_a_name_that_no_browser_can_ask_for_is_refused(root):
    image = root / "images" / f"{NAME}.png"
    image.rename(image.with_name(os.fsdecode(b"k\xe4se.png")))
    with pytest.raises(ValueError, match=r"k\\udce4se\.png' has a name that is no text in UTF-8.*rename it"):
        Drawings(root, CLASSES)


def test_what_is_done_may_have_a_break_of_lines_in_its_name(root):
    image = root / "images" / f"{NAME}.png"
    image.rename(image.with_name("wait\x85 what\u2028.png"))  # "wait…", read as Latin-1
    drawings = Drawings(root, CLASSES)
    drawings.set_done("day0/wait\x85 what\u2028", True)
    assert drawings.done() == ["day0/wait\x85 what\u2028"]


def test_done_images_are_listed(drawings, root):
    assert drawings.done() == []
    for name in ("day1/scene 1", NAME, "day1/scene 1"):
        drawings.set_done(name, True)
    assert (root / "done.txt").read_text() == f"{NAME}\nday1/scene 1\n"
    drawings.set_done(NAME, False)
    assert drawings.done() == ["day1/scene 1"]
    with pytest.raises(KeyError):
        drawings.set_done("../classes", True)


# The server --------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(drawings):
    with served(serving.Desk(drawings, None, None)) as server:
        yield server


def ask(server, what="state", body=None, token=None, headers=(), method=None):
    """Status, headers and content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    sent = json.dumps(body).encode() if isinstance(body, dict) else body
    named = {"Host": f"127.0.0.1:{server.server_port}", **dict(headers)}
    if sent is not None:
        named = {"Content-Type": "application/json", **named}
    path = f"/{server.token if token is None else token}/{what}"
    connection.request(method or ("GET" if sent is None else "POST"), path, sent, named)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


MASK = "mask?name=day0%2Fscene%200"


def test_only_who_knows_the_address_is_answered(server, drawings, root):
    body = {"version": NO_MASK, "runs": to_runs(scribble(drawings))}
    before = snapshot(root)
    port = server.server_port
    for what, content in (
        ("state", None),
        ("", None),
        ("page.js", None),
        (MASK, None),
        (MASK, body),
        ("done?name=x", {}),
    ):
        for token in ("", "x", server.token[:-1], server.token + "x", "%ff", "é".encode().hex(), f"../{server.token}"):
            status, _, told = ask(server, what, content, token)
            assert status == 403, (what, token)
            assert server.token.encode() not in told
        for host in ("", "evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port}.evil.example",
                     f"127.0.0.1:{port + 1}", f"0.0.0.0:{port}"):  # fmt: skip
            status, _, told = ask(server, what, content, headers={"Host": host})
            assert status == 403, (what, host)
    status, _, _ = ask(server, MASK, body, headers={"Origin": "http://evil.example"})
    assert status == 403
    assert ask(server, MASK, body, headers={"Origin": "null"})[0] == 403
    assert snapshot(root) == before
    assert ask(server, headers={"Host": f"localhost:{port}"})[0] == 200
    assert ask(server, MASK, body, headers={"Origin": f"http://127.0.0.1:{port}"})[0] == 200
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 32


def test_answers_forbid_all_that_the_page_does_not_need(server):
    for what in ("", "page.js", "page.css", "state", MASK, "image?name=day0/scene%200", "nothing"):
        status, headers, content = ask(server, what)
        assert status == (404 if what == "nothing" else 200), content
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers
    for what in ("", "page.js", "page.css"):
        text = ask(server, what)[2].decode()
        assert not re.search(r"https?://|style=|<script>| on\w+=", text), what


@pytest.mark.parametrize(
    "name",
    ["..%2F..%2Fetc%2Fpasswd", "../classes", "/etc/passwd", "%2Fetc%2Fpasswd", "day0/scene 0.png".replace(" ", "%20"),
     "..%5C..%5Cx", "day0%2F..%2Fday0%2Fscene%200", "day0/scene%200%00", "", "%ff", "a" * 5000],
)  # fmt: skip
def test_a_name_that_is_no_images_is_refused(server, root, name):
    (root.parent / "outside.png").write_bytes(b"x")
    before = snapshot(root.parent)
    for what in ("mask", "image", "prediction"):
        assert ask(server, f"{what}?name={name}")[0] == (422 if what == "prediction" else 404)
    for what, body in (("mask", {"version": NO_MASK, "runs": [1, 4096]}), ("done", {"done": True})):
        assert ask(server, f"{what}?name={name}", body)[0] == 404
    assert ask(server, f"../{name}")[0] in (403, 404)
    assert snapshot(root.parent) == before


def test_bodies_that_are_no_mask_are_refused(server, root, drawings):
    before = snapshot(root)
    whole = to_runs(scribble(drawings))
    bad = [b"", b"{", b"[]", b"1", b"\xff\xfe", b"[" * 100_000, b'{"version": "none"}', b'{"runs": NaN}']
    bad += [{"version": NO_MASK, "runs": runs} for runs in ([1, 9], [9, 4096], [0, 10**30])]
    for body in bad:
        status, _, told = ask(server, MASK, body)
        assert status in (400, 422), body
        assert json.loads(told)["error"]
    assert ask(server, MASK, {"runs": whole})[0] == 409  # no version
    for body in ({}, {"done": 1}, {"done": "yes"}):
        assert ask(server, "done?name=day0/scene%200", body)[0] == 422
    good = {"version": NO_MASK, "runs": whole}
    assert ask(server, MASK, good, headers={"Content-Type": "text/plain"})[0] == 415
    assert ask(server, MASK, b"", headers={"Content-Length": str(2**26 + 1)})[0] == 413
    assert ask(server, MASK, b"", headers={"Content-Length": "9" * 5000})[0] == 413
    assert ask(server, MASK, b"", headers={"Content-Length": "-1"})[0] == 411
    assert ask(server, MASK, iter([b"{}"]), headers={"Transfer-Encoding": "chunked"})[0] == 411
    assert ask(server, MASK, method="DELETE")[0] == 501
    assert snapshot(root) == before
    assert ask(server, MASK, good)[0] == 200


def test_a_page_that_has_an_old_version_is_told(server, drawings):
    first = json.loads(ask(server, MASK)[2])
    assert (first["version"], first["size"]) == (NO_MASK, [64, 64])
    body = {"version": first["version"], "runs": to_runs(scribble(drawings))}
    status, _, told = ask(server, MASK, body)
    assert status == 200
    status, _, refused = ask(server, MASK, body)
    assert status == 409
    assert "was not written over" in json.loads(refused)["error"]
    assert json.loads(ask(server, MASK)[2]) == {
        "version": json.loads(told)["version"], "size": [64, 64], "runs": body["runs"],
    }  # fmt: skip


def test_a_taken_port_is_passed_over(drawings, monkeypatch):
    desk = serving.Desk(drawings, None, None)
    with served(desk) as first, served(desk, first.server_port) as second:
        assert first.server_port < second.server_port < first.server_port + serving.PORTS
        monkeypatch.setattr(serving, "PORTS", 1)
        with pytest.raises(OSError, match="choose another with --port"):
            serving.Server(desk, first.server_port)


def test_suggestions_without_a_model_go_in_order(server, drawings):
    names = [*drawings.images]
    assert json.loads(ask(server, "suggestion")[2])["name"] == names[0]
    drawings.write(names[0], scribble(drawings, names[0]), NO_MASK)
    drawings.set_done(names[1], True)
    assert json.loads(ask(server, "suggestion")[2])["name"] == names[2]


def test_the_most_uncertain_image_is_next():
    sure, torn = np.zeros((3, 4, 5)), np.full((3, 4, 5), 1 / 3)
    sure[1] = 1
    assert uncertainty(sure) == pytest.approx(0, abs=1e-9)
    assert uncertainty(torn) == pytest.approx(1)
    half = np.stack([np.full((2, 2), 0.5), np.full((2, 2), 0.5), np.zeros((2, 2))])
    assert uncertainty(half) == pytest.approx(np.log(2) / np.log(3))
    assert next_image({"a": 0.1, "b": 0.7, "c": 0.3}) == "b"
    assert next_image({}) is None


# The command -------------------------------------------------------------------------------------------------------


def test_a_wrong_command_line_is_refused(root):
    assert "--train takes" in weakseg("annotate", root, "--train", 0, expect=2)
    assert "are for --train" in weakseg("annotate", root, "--", "--config", "tv", expect=2)
    assert "--port takes" in weakseg("annotate", root, "--port", 70000, expect=2)
    assert "name the classes" in weakseg("annotate", root, expect=1)
    assert "best.ckpt" in weakseg("annotate", root, "--classes", "a,b", "--run", root, expect=1)


def test_ctrl_c_ends_it_with_a_line(root, monkeypatch):
    serve = serving.Server.serve_forever

    def interrupted(server):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        serve(server)

    monkeypatch.setattr(serving.Server, "serve_forever", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for jobs in the background
    try:
        said = weakseg("annotate", root, "--classes", "ground,horse", "--port", 0).splitlines()
    finally:
        signal.signal(signal.SIGINT, before)
    assert said[0] == "6 images, 0 done; classes: ground, horse"
    assert re.fullmatch(r"Open http://127\.0\.0\.1:\d+/[\w-]{32}/ in a browser on this machine; Ctrl-C ends\.", said[1])
    assert said[2:] == ["", f"ended; what was drawn is in {root / 'masks'}"]


class Here:
    """A process that is none: its command runs in the thread that waits for it, without the seconds of a start."""

    def __init__(self, command, stdout, **_):
        self.words, self.log = command[3:], Path(stdout.name)

    def wait(self):
        self.log.write_text(weakseg(*self.words))
        return 0


@pytest.mark.parametrize("process", ["here", pytest.param("its own", marks=pytest.mark.slow)])
def test_rounds_of_training_end_in_a_model_that_predicts_and_suggests(root, tmp_path, process, monkeypatch):
    """Two marked images start a round of two steps; its model shows predictions, and the next round starts from it."""
    if process == "here":
        stand_in = SimpleNamespace(**{**vars(subprocess), "Popen": Here})
        monkeypatch.setattr("experiments.annotate.training.subprocess", stand_in)
    runs = tmp_path / "rounds"
    words = ["--config", str(TINY), "--trainer.max_steps", "2", "--data.size", "32"]
    options = argparse.Namespace(folder=root, classes=",".join(CLASSES), run=None, train=2, runs=runs, fit=words)
    desk = open_desk(options)
    try:
        for number, name in enumerate(desk.drawings.images):
            if number < 5:
                desk.draw(name, {"version": NO_MASK, "runs": to_runs(scribble(desk.drawings, name, number))})
        with pytest.raises(ValueError, match="no model yet"):
            desk.prediction(NAME)
        names = [*desk.drawings.images]
        for name in names[:2]:
            desk.mark(name, {"done": True})
        wait(lambda: "was trained" in desk.training.status(), desk)
        assert (runs / "round-1" / "summary.json").exists()
        assert desk.news()["model"] == 1
        desk.prediction(NAME)
        wait(lambda: "runs" in desk.prediction(NAME), desk)
        found = desk.prediction(NAME)
        expected = desk.predictions.run.predict(desk.drawings.image(NAME))
        np.testing.assert_array_equal(from_runs(found["runs"], expected.shape), expected)
        wait(lambda: desk.suggestion()["name"] == names[5], desk)  # the only one without labels
        assert str(runs / "round-1" / "checkpoints" / "last.ckpt") in desk.training.command(runs / "round-2")
        desk.predictions.use(runs / "round-1")
        assert desk.news()["model"] == 2
    finally:
        desk.close()
    again = open_desk(options)  # the same command later: the last round's model is there
    assert again.news()["model"] == 1
    again.close()


def wait(done, desk, seconds=120):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, desk.training.status()
        assert " not train" not in f" {desk.training.status()}", desk.training.status()
        time.sleep(0.1)


def wait_for(training, words):
    end = time.monotonic() + 60
    while words not in training.status():
        assert time.monotonic() < end, training.status()
        time.sleep(0.02)


def test_training_counts_what_is_newly_done_and_tells_what_went_wrong(root, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'first line'\necho 'weakseg: error: no encoder' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr("experiments.annotate.training.PROGRAM", (str(python),))
    training = Training(root, tmp_path / "r", 3, [], None, lambda run: None)
    training.consider(["a", "b"])
    assert "trains after 3" in training.status()
    training.consider(["a", "b", "c"])
    wait_for(training, "round 1 did not train: weakseg: error: no encoder")
    training.consider(["a", "b", "c", "d", "e"])
    time.sleep(0.2)
    assert [path.name for path in training.rounds()] == ["round-1"]
    training.consider(["a", "b", "c", "d", "e", "f"])
    wait_for(training, "round 2 did not train")
    training.stop()


def test_a_page_that_is_opened_again_counts_from_the_last_round_that_was_finished(root, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nfor word; do folder=$word; done\necho '{}' > $folder/summary.json\n")
    python.chmod(0o755)
    monkeypatch.setattr("experiments.annotate.training.PROGRAM", (str(python),))
    for done, said in ("abc", "round 1 was trained"), ("abcde", "trains after 3"), ("abcdef", "round 2 was trained"):
        training = Training(root, tmp_path / "r", 3, [], None, lambda run: None)
        training.consider([*done])
        time.sleep(0.2)
        wait_for(training, said)
        training.stop()
        training.thread.join(10)


def test_a_round_ends_with_the_page(root, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 600\n")
    python.chmod(0o755)
    monkeypatch.setattr("experiments.annotate.training.PROGRAM", (str(python),))
    training = Training(root, tmp_path / "r", 1, [], None, lambda run: None)
    training.consider(["a"])
    wait_for(training, "round 1 is training")
    process = training.process
    training.stop()
    assert process.poll() == -signal.SIGTERM
    training.thread.join(10)
    assert not training.thread.is_alive()


def test_the_command_of_a_round_has_its_data_behind_the_configs(root, tmp_path):
    words = ["--config", "base", "--config=tv", "--model.tv_weight", "1"]
    training = Training(root, tmp_path / "r", 1, words, tmp_path / "a.ckpt", lambda run: None)
    command = training.command(tmp_path / "r" / "round-1")
    training.stop()
    assert command[:6] == ["fit", *words[:3], "--data", "Folder"]
    assert command[-6:] == [*words[3:], "--init_from", f"{tmp_path / 'a.ckpt'}", "--run_dir", f"{tmp_path}/r/round-1"]


def test_without_a_config_a_round_chooses_from_the_folder(root, drawings, tmp_path):
    """The command as it stands, with what makes it a matter of seconds: the kind of labels says the method."""
    training = Training(root, tmp_path / "r", 1, [], None, lambda run: None)
    run_dir = tmp_path / "r" / "round-1"
    command = training.command(run_dir)
    training.stop()
    assert command[:3] == ["fit", "--data", str(root)]
    assert command[-2:] == ["--run_dir", str(run_dir)]
    assert "--config" not in command
    for number, name in enumerate(drawings.images):
        drawings.write(name, scribble(drawings, name, number % len(CLASSES)), NO_MASK)
    training.words = [
        "--model.network.encoder",
        "tu-test_resnet",
        "--trainer.max_steps",
        "2",
        "--data.num_workers",
        "0",
    ]
    said = weakseg(*training.command(run_dir))
    assert "strokes, much left open; " in said
    assert "chosen: tv" in said
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["data"]["init_args"]["root"] == str(root)
    assert config["model"]["class_path"].endswith("TV")
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 2


def test_fit_takes_two_steps_on_what_was_drawn(drawings, root, tmp_path):
    for number, name in enumerate(drawings.images):
        drawings.write(name, scribble(drawings, name, number % len(CLASSES)), NO_MASK)
        drawings.set_done(name, True)
    weakseg("fit", "--config", TINY, *on_folder(root), "--trainer.max_steps", 2, "--run_dir", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2
