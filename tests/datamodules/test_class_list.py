"""Lists of classes, ours and those of other tools: understood or refused, and ids never shifted."""

import pytest

from datamodules.class_list import background_of, class_file, is_void, read_classes
from datamodules.files import ClassInfo, default_color


def classes_of(tmp_path, text, **how):
    path = tmp_path / "classes.txt"
    path.write_text(text, **how)
    return read_classes(path)


def names_of(tmp_path, text, **how):
    return [one.name for one in classes_of(tmp_path, text, **how).classes]


def refused(kind, words, call, *arguments):
    """`call` raises `kind` with a message of one line that holds every word."""
    with pytest.raises(kind) as caught:
        call(*arguments)
    assert all(str(word) in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_class_files(tmp_path):
    text = "# ids count from 0\nbackground\nopen road 128 64 128\n\ncar, 64, 0, 128\n tree #00fF10 \nvoid 224 224 192\n"
    found = classes_of(tmp_path, text)
    assert found.classes == [
        ClassInfo("background", default_color(0)),
        ClassInfo("open road", (128, 64, 128)),
        ClassInfo("car", (64, 0, 128)),
        ClassInfo("tree", (0, 255, 16)),
    ]
    assert found.palette == {(128, 64, 128): 1, (64, 0, 128): 2, (0, 255, 16): 3, (224, 224, 192): 255}
    assert found.void_before is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("background\r\nstraße\r\nclass 2\r\n", ["background", "straße", "class 2"]),
        ("a\rb", ["a", "b"]),
        ("name,r,g,b\na,1,2,3\nb,4,5,6\n", ["a", "b"]),
        ("Name R G B\na 1 2 3\nb 4 5 6\n", ["a", "b"]),
        ("id,name,r,g,b\n0,a,1,2,3\n1,b,4,5,6\n", ["a", "b"]),
        ("index\tclass\n0\ta\n1\tb\n", ["a", "b"]),
        ("class_name;color\na;#010203\nb;#040506\n", ["a", "b"]),
        ("0 a\n1 b\n", ["a", "b"]),
        ("0: a\n1: b\n", ["a", "b"]),
        ("0=a\n1=b\n", ["a", "b"]),
        ("background\nopen road 1 2 3\nb 4 5 6\n", ["background", "open road", "b"]),
        ("0,a,0,0,0\n1,b,9,9,9\n255,void,1,1,1\n", ["a", "b"]),
        ("0\ta\n1\tb c\n", ["a", "b c"]),
        ("a\nb\n# the end\nvoid\nignore\n", ["a", "b"]),
        ("__ignore__\n_background_\nhorse\n", ["_background_", "horse"]),
        ("# label:color_rgb:parts:actions\nbackground:0,0,0::\na b:255,0,0:c,d:run\n", ["background", "a b"]),
        ("background:::\nhorse:::\n", ["background", "horse"]),
        ('"a",1,2,3\n"b c",4,5,6\n', ["a", "b c"]),
        ("2-wheeler\n3d printer\n", ["2-wheeler", "3d printer"]),
        ("a,(1, 2, 3)\nb [4 5 6]\n", ["a", "b"]),
        ("a\n2 wheeler\n", ["a", "2 wheeler"]),
        ("0 128 0 0\n1 0 128 0\n", ["0", "1"]),  # names that are numbers
        ("gebu\u0308sch\nhorse\n", ["geb\u00fcsch", "horse"]),
    ],
)  # fmt: skip
def test_lists_of_other_tools_and_editors(tmp_path, text, names):
    assert names_of(tmp_path, text, encoding="utf-8-sig", newline="") == names
    assert classes_of(tmp_path, text, encoding="utf-8", newline="").void_before is None


def test_colours_of_other_tools(tmp_path):
    for text in (
        "name,r,g,b\na,1,2,3\nb,4,5,6\n",
        "a:1,2,3::\nb:4,5,6::\n",
        "0;a;1;2;3\n1;b;4;5;6\n",
        "a #010203\nb #040506",
    ):
        assert classes_of(tmp_path, text).palette == {(1, 2, 3): 0, (4, 5, 6): 1}


@pytest.mark.parametrize("name", ["void", "Ignore", "unlabelled", "unlabeled", "__ignore__", "_ignore_"])
def test_void_is_no_class(tmp_path, name):
    assert is_void(name)
    found = classes_of(tmp_path, f"a\nb\n{name} 9 9 9\n")
    assert [one.name for one in found.classes] == ["a", "b"]
    assert found.palette == {(9, 9, 9): 255}
    assert found.void_before is None


@pytest.mark.parametrize(
    "text", ["void 9 9 9\na\nb\n", "unlabeled\na\nb\n", "a\n__ignore__\nb\n", "0 void\n1 a\n2 b\n"]
)
def test_a_void_before_a_class_leaves_ids_open(tmp_path, text):
    found = classes_of(tmp_path, text)
    assert [one.name for one in found.classes] == ["a", "b"]
    line = 2 if text.startswith("a") else 1
    for word in (f"classes.txt, line {line}", "put it last", "data.mask_values", f"{{{line - 1}: ignore"):
        assert word in found.void_before


def test_the_background_has_two_names():
    assert background_of(["a", "_background_"]) == 1
    assert background_of(["Background", "b"]) == 0
    assert background_of(["a", "b"]) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["names 0 classes", "at least 2", "background"]),
        ("horse\n", ["names 1 classes", "at least 2"]),
        ("".join(f"c{number}\n" for number in range(256)), ["names 256 classes", "at most 255"]),
        ("a\nb\na\n", ["line 3", "'a' repeats"]),
        ("a 1 2 3\n\nb 1 2 3\n", ["line 3", "b 1 2 3", "colour"]),
        ("a 1 2 3\nvoid 1 2 3\n", ["line 2", "void 1 2 3", "colour"]),
        ("a\nb 0 256 0\n", ["line 2", "0 to 255", "(0, 256, 0)"]),
        ("a\nb #12345\n", ["line 2", "b #12345", "#rrggbb"]),
        ("a 1 2 3 255\nb 4 5 6 255\n", ["line 1", "a 1 2 3 255", "name r g b"]),
        ("a 1 2\nb\n", ["line 1", "a 1 2", "name r g b"]),
        ("a 0.5 0.5 0.5\nb\n", ["line 1", "name r g b"]),
        ("a,0\nb,1\n", ["line 1", "a,0", "name r g b"]),
        ("a: 0\nb: 1\n", ["line 1", "a: 0"]),
        ("1 a\n2 b\n", ["line 1", "'1 a' is class 0, not 1", "in order", "mask_values"]),
        ("0 a\n2 b\n", ["line 2", "'2 b' is class 1, not 2"]),
        ("0 a\nb\n", ["line 2", "'b' has no number in front"]),
        ("3 wheeler\nb\n", ["line 1", "not 3"]),
        ("name\na\nb\n", ["line 1", "'name' looks like a header"]),
        ("r,g,b,name\n1,2,3,a\n", ["line 1", "looks like a header", "in this order"]),
        ("names:\n  a\n  b\n", ["line 1", "'names:' looks like a header"]),
        ("classname;colour_hex\na;#010203\nb;#040506\n", ["line 1", "no colour", "is it a header?"]),
        ("Klasse Rot Gruen Blau\na 1 2 3\nb 4 5 6\n", ["line 1", "is it a header?"]),
        ('[\n"a",\n"b"\n]\n', ["line 1", "'['", "name r g b"]),
        ("- a\n- b\n", ["line 1", "'- a'"]),
        ("<object>\na\n", ["line 1", "<object>"]),
        ("a=0\nb=1\n", ["line 1", "a=0"]),
    ],
)  # fmt: skip
def test_bad_class_files_are_named(tmp_path, text, words):
    refused(ValueError, [tmp_path / "classes.txt", *words], classes_of, tmp_path, text)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "cp1252", "latin-1"])
def test_other_encodings_are_refused(tmp_path, encoding):
    (tmp_path / "classes.txt").write_bytes("Straße\nb\n".encode(encoding))
    refused(ValueError, [tmp_path / "classes.txt", "UTF-8", "save"], read_classes, tmp_path / "classes.txt")


def test_255_classes_are_read(tmp_path):
    assert len(classes_of(tmp_path, "".join(f"c{number}\n" for number in range(255))).classes) == 255


def test_a_list_of_another_tool_serves_where_there_is_no_classes_txt(tmp_path):
    path = class_file(tmp_path)
    refused(FileNotFoundError, [path, "one class name a line"], read_classes, path)
    for name in ("classes.csv", "my_Labels.txt", "obj.names", "notes.txt", "._classes.txt"):
        (tmp_path / name).touch()
    words = [path, "classes.csv, my_Labels.txt, obj.names, call it classes.txt"]
    refused(FileNotFoundError, words, read_classes, path)
    (tmp_path / "labelmap.txt").write_text("a\nb")
    assert class_file(tmp_path) == tmp_path / "labelmap.txt"
    (tmp_path / "labels.txt").write_text("b\na")
    refused(ValueError, [tmp_path, "labels.txt and labelmap.txt", "classes.txt"], class_file, tmp_path)
    (tmp_path / "classes.txt").write_text("c\nd")
    assert class_file(tmp_path) == tmp_path / "classes.txt"
