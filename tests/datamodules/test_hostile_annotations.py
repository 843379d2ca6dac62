"""Annotation files made to break a reader: each ends in one line that names it, soon, in little memory, with nothing
written."""

import base64
import contextlib
import json
import os
import re
import resource
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from conftest import weakseg
from datamodules.drawn import find
from datamodules.sets.folder import Folder

NAMES = "abcdefghij"
ERROR = re.compile("problem: |weakseg: error: ")
SPARE = 2**28  # bytes that a reader may take
SQUARE = [5, 5, 20, 5, 20, 20, 5, 20]
PAIRS = [[5, 5], [20, 5], [20, 20], [5, 20]]


def labelme(**more):
    shape = {"label": "dog", "shape_type": "polygon", "points": PAIRS}
    return {"imageWidth": 40, "imageHeight": 30, "shapes": [shape | more.pop("shape", {})], **more}


def coco(**more):
    """The annotations of all images, of which the first has more."""
    square = {"category_id": 1, "segmentation": [SQUARE]}
    return {
        "images": [{"id": i, "file_name": f"{name}.jpg", "width": 40, "height": 30} for i, name in enumerate(NAMES)],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"id": i, "image_id": i} | square | (more if i == 0 else {}) for i in range(len(NAMES))],
    }


def task(**value):
    """The tasks of all images, with one result each."""
    value = {"brushlabels": ["dog"], **value}
    found = {"type": "brushlabels", "original_width": 40, "original_height": 30, "value": value}
    return [{"id": 1, "data": {"image": f"{name}.jpg"}, "annotations": [{"result": [found]}]} for name in NAMES]


def cvat(shape, size='width="40" height="30"'):
    """All images with one shape each."""
    images = [f'<image name="{name}.jpg" {size}>{shape}</image>' for name in NAMES]
    return "".join(["<annotations>", *images, "</annotations>"])


def cvat_mask(rle, side):
    return cvat(f'<mask label="dog" rle="{rle}" left="0" top="0" width="{side}" height="{side}"/>')


def picture(width, height):
    """A PNG of that size as its header says, with nothing in it, in base64."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\0\0\0\0"
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")):
        content += len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    return base64.b64encode(content).decode()


def mask(points, text):
    return labelme(shape={"shape_type": "mask", "points": points, "mask": text})


def huge(path):
    with path.open("wb") as file:
        file.truncate(2**30)


BOMB = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "ha"}">' for i in range(12))
LISTS = "names: [" + "*a, " * 9 + "*a]\n"
RUNS = {"size": [30, 40]}
DEEP = 50_000

FILES = {
    "a.json nothing": "",
    "a.json zeros": b"\0" * 1000,
    "a.json cut": json.dumps(labelme())[:-5],
    "a.json latin": '{"shapes": "é"}'.encode("latin-1"),
    "a.json deep lists": "[" * DEEP,
    "a.json deep objects": '{"a":' * DEEP,
    "a.json deep points": '{"shapes": [{"label": "dog", "points": ' + "[" * 900 + "1" + "]" * 900 + "}]}",
    "a.json a number of 5000 digits": '{"shapes": [], "imageWidth": ' + "9" * 5000 + ', "imageHeight": 30}',
    "a.json a number of 4000 digits": '{"shapes": [], "imageWidth": ' + "9" * 4000 + ', "imageHeight": 30}',
    "a.json NaN": '{"shapes": [], "imageWidth": NaN, "imageHeight": 30}',
    "a.json Infinity": '{"shapes": [{"label": "dog", "points": [[1, 2], [-Infinity, 3], [3, 4]]}]}',
    "a.json 1e999": '{"shapes": [{"label": "dog", "points": [[1, 2], [1e999, 3], [3, 4]]}]}',
    "a.json null": "null",
    "a.json text": '"shapes"',
    "a.json shapes is a number": {"shapes": 7},
    "a.json shapes is an object": {"shapes": {"a": 1}},
    "a.json shapes of null": {"shapes": [None]},
    "a.json label is a list": labelme(shape={"label": ["dog"]}),
    "a.json kind is an object": labelme(shape={"shape_type": {"a": []}}),
    "a.json points are an object": labelme(shape={"points": {"x": 1}}),
    "a.json points are text": labelme(shape={"points": ["ab", "cd", "ef"]}),
    "a.json very many points": labelme(shape={"points": [[1, 1]] * 110_000}),
    "a.json very far": labelme(shape={"shape_type": "circle", "points": [[1, 1], [1e17, 1e17]]}),
    "a.json a size of a terabyte": labelme(imageWidth=2**20, imageHeight=2**20),
    "a.json a negative size": labelme(imageWidth=-40, imageHeight=-30),
    "a.json a size in words": labelme(imageWidth="40", imageHeight=[30]),
    "a.json a mask of a terabyte": mask([[0, 0], [2**20 - 1, 2**20 - 1]], picture(2**20, 2**20)),
    "a.json a mask in a small box": mask([[0, 0], [9, 9]], picture(2**20, 2**20)),
    "a.json a mask that is cut": mask([[0, 0], [39, 29]], picture(40, 30)[:-30]),
    "a.json a mask that is no PNG": mask([[0, 0], [1, 1]], base64.b64encode(b"GIF89a" * 99).decode()),
    "a.json a gibibyte": huge,
    "coco.json images is an object": coco() | {"images": {"a": 1}},
    "coco.json images of lists": coco() | {"images": [[[]]]},
    "coco.json categories is null": coco() | {"categories": None},
    "coco.json an id is a list": coco(image_id=[0]),
    "coco.json an id is an object": coco(category_id={"id": 1}),
    "coco.json a terabyte of runs": coco(segmentation=RUNS | {"counts": [0, 2**43]}),
    "coco.json runs of 4000 digits": coco(segmentation=RUNS | {"counts": [int("9" * 4000), 1]}),
    "coco.json runs of lists": coco(segmentation=RUNS | {"counts": [[1], [2]]}),
    "coco.json text that never ends": coco(segmentation=RUNS | {"counts": "o" * 10**6}),
    "coco.json rings of objects": coco(segmentation=[{"x": 1, "y": 2}]),
    "coco.json rings of rings": coco(segmentation=[[[SQUARE]]]),
    "coco.json a ring of nulls": coco(segmentation=[[None] * 8]),
    "coco.json very many points": coco(segmentation=[[1] * 210_000]),
    "coco.json no file name": coco() | {"images": [{"id": 0, "file_name": None}]},
    "result.json a task is null": [*task(rle=[]), None],
    "result.json a brush of a terabyte": task(rle=[255] * 4 + [0x39, 0x1B, 0xFD, 0xB0]),
    "result.json a brush of text": task(rle=["a"]),
    "result.json a brush that is a number": task(rle=2**30),
    "result.json a brush of a large number": task(rle=[2**70]),
    "result.json a brush of numbers": task(rle=[-1, 2**70]),
    "result.json a brush that is too long": task(rle=[0] * 10**5),
    "annotations.xml a billion laughs": f"<!DOCTYPE x [{BOMB}]><annotations>&e11;</annotations>",
    "annotations.xml a file from elsewhere": '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotations>&e;</annotations>',
    "annotations.xml UTF-16 with a DOCTYPE": "<!DOCTYPE x [<!ENTITY e 'x'>]><annotations/>".encode("utf-16"),
    "annotations.xml deep": "<annotations>" + "<image>" * DEEP,
    "annotations.xml deep and whole": "<a>" * DEEP + "</a>" * DEEP,
    "annotations.xml a mask of a terabyte": cvat_mask(9, 2**20),
    "annotations.xml a count of 5000 digits": cvat_mask("9" * 5000, 3),
    "annotations.xml a size of a terabyte": cvat("", 'width="1048576" height="1048576"'),
    "annotations.xml NaN": cvat('<polygon label="dog" points="1,1;nan,2;3,3"/>'),
    "labels/a.txt a gibibyte": huge,
    "labels/a.txt one long line": "1 " + "0.5 " * 10**6,
    "labels/a.txt zeros": b"\0" * 1000,
    "labels/a.txt latin": b"\xff\xfe1 0.1",
    "labels/a.txt a class of 5000 digits": "9" * 5000 + " 0.1 0.1 0.9 0.1 0.9 0.9",
    "labels/a.txt infinite": "1 inf 0.1 0.9 0.1 0.9 0.9",
    "data.yaml code": "names: !!python/object/apply:os.system ['touch hacked']",
    "data.yaml aliases": "a: &a [x, x]\n" + LISTS,
    "data.yaml deep lists": "names: " + "[" * 10_000,
    "data.yaml deep blocks": "- " * 10_000,
    "data.yaml many megabytes": "names: [" + "a, " * 10**6 + "]",
    "data.yaml a gibibyte": huge,
}  # fmt: skip


@contextlib.contextmanager
def little_memory():
    """No more than `SPARE` bytes beyond what is mapped already."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + SPARE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def root(tmp_path):
    """A folder of images without masks."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "classes.txt").write_text("background\ndog\n")
    for name in NAMES:
        Image.new("RGB", (40, 30)).save(tmp_path / "data" / "images" / f"{name}.jpg")
    return tmp_path / "data"


def prepare(root):
    """All that training and validation read."""
    Folder(str(root), fill="background", cache_dir=str(root.parent / "cache")).prepare_data()


def files(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", FILES)
def test_a_hostile_file_ends_in_one_line(root, case, monkeypatch):
    name, content = case.split()[0], FILES[case]
    for one in NAMES[1:]:  # the others are sound
        if name == "a.json":
            (root / "images" / f"{one}.json").write_text(json.dumps(labelme()))
        if name in ("labels/a.txt", "data.yaml"):
            (root / "labels").mkdir(exist_ok=True)
            (root / "labels" / f"{one}.txt").write_text("1 0.1 0.1 0.9 0.1 0.9 0.9\n")
    for split in ("train", "val", "test"):
        (root / f"{split}.txt").write_text("\n".join({"train": NAMES[:6], "val": NAMES[6:8], "test": NAMES[8:]}[split]))
    path = root / "images" / name if name == "a.json" else root / name
    if callable(content):
        content(path)
    else:
        content = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    monkeypatch.chdir(root.parent)
    before, start = files(root.parent), time.process_time()
    with little_memory():
        text = weakseg("doctor", "--data", "Folder", "--data.root", root, "--data.fill", "background", expect=1)
    assert time.process_time() - start < 5  # a second on a machine that does nothing else
    lines = [ERROR.sub("", line) for line in text.splitlines() if ERROR.match(line)]
    told = [line for line in lines if line.startswith(str(path))]  # an image a line
    assert told
    assert max(map(len, told)) < len(str(path)) + 500
    assert files(root.parent) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("coco.json", json.dumps(coco())),
        ("result.json", json.dumps(task(points=PAIRS, polygonlabels=["dog"])).replace("brushlabels", "polygonlabels")),
        ("annotations.xml", cvat('<polygon label="dog" points="1,1;20,2;3,30"/>')),
    ],
)
def test_a_sound_file_is_read_in_the_same_memory(root, name, content):
    (root / name).write_text(content)
    with little_memory():
        prepare(root)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_what_is_no_file_is_not_opened(root, make):
    for name in NAMES:
        make(root / "images" / f"{name}.json")
    with pytest.raises(ValueError, match=r"\.json: this is no file"):
        prepare(root)


WRONG = [None, True, -1, 2**70, 1e300, "", "x", "9" * 30, [], {}, [[]], [None], {"a": 1}, [[1, 2], [3, 4], [5, 6]]]


def places(content):
    """Every value in a JSON file: what it is in, and its key there."""
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], dict | list):
            yield from places(content[key])


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("masks/a.json", labelme()),
        ("masks/a.json", mask([[0, 0], [39, 29]], picture(40, 30))),
        ("coco.json", {key: values[:1] for key, values in coco().items()}),
        ("coco.json", {key: values[:1] for key, values in coco(segmentation=RUNS | {"counts": [600, 600]}).items()}),
        ("result.json", task(rle=[0, 0, 18, 192, 57, 27, 253])[:1]),
        ("result.json", task(x=1, y=2, width=3, height=4, rotation=5)[:1]),
    ],
)
def test_a_wrong_value_anywhere_ends_in_a_line_that_names_the_file(root, name, content):
    """Any value replaced by one of another kind: read, or refused in one line that names the file."""
    path, refused = root / name, 0
    path.parent.mkdir(exist_ok=True)
    for container, key in list(places(content)):
        right = container[key]
        for wrong in WRONG:
            container[key] = wrong
            path.write_text(json.dumps(content))
            try:
                for one in find(root, {"a": root / "images" / "a.jpg"}, ("background", "dog"), 0).values():
                    one.mask()
            except ValueError as error:
                refused += 1
                assert str(error).startswith(str(path))  # noqa: PT017 (some are read)
        container[key] = right
    assert refused > 100
