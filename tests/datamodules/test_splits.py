"""Lists on disk, and splits of ours."""

import re
import time

import pytest

from datamodules.splits import check_disjoint, first_few, hold_out, in_hash_order, missing, read_list


def test_lists(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("b\n\nimages/a.jpg masks/a.png\nfolder\\c.d.jpg\r\n", encoding="utf-8-sig")
    assert read_list(path) == ["b", "a", "c.d"]


KNOWN = {"a", "b", "my photo", "IMG.2020.rf.abc", "day1/a", "geb\u00fcsch", "c.jpg", "a,b"}


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("a\nb.jpg\nimages/my photo.jpg", ["a", "b", "my photo"]),
        ("IMG.2020.rf.abc", ["IMG.2020.rf.abc"]),
        ("IMG.2020.rf.abc.jpg", ["IMG.2020.rf.abc"]),
        ("/home/me/data/images/day1/a.png\nday1/b.png", ["day1/a", "b"]),
        ("C:\\data\\images\\day1\\a.PNG", ["day1/a"]),
        ("gebu\u0308sch.jpg", ["geb\u00fcsch"]),
        ("c.jpg", ["c.jpg"]),  # the file c.jpg.png
        ("a,b", ["a,b"]),
        ("# mine\n\n a \n#b\nb", ["a", "b"]),
        ("image,mask\nimages/a.jpg,masks/a.png\nb.jpg,b.png", ["a", "b"]),
        ("filename;label\na;masks/a.png", ["a"]),
        ("JPEGImages/a.jpg SegmentationClass/a.png\nb b", ["a", "b"]),
        ('"my photo.jpg","my photo.png"', ["my photo"]),
        ("IMG.2021.rf.abd\nnone.jpg", ["IMG.2021.rf.abd", "none"]),  # not known: as it is, for the message
    ],
)
def test_lines_of_ones_own_lists(tmp_path, lines, names):
    path = tmp_path / "list.txt"
    path.write_text(lines, encoding="utf-8-sig")
    assert read_list(path, KNOWN) == names


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("a\nb train\n", ["line 2", "'b train'", "one id a line"]),
        ("a 1 2\n", ["line 1", "one id a line"]),
        ("a.jpg,b.jpg,day1/a.jpg", ["line 1"]),
        ("x/none.jpg masks/a.png\nx/none.jpg", ["names none more than once"]),
        ("a\nimages/a.png\n", ["names a more than once"]),
    ],
)
def test_other_lines_of_ones_own_lists_are_refused(tmp_path, lines, words):
    path = tmp_path / "list.txt"
    path.write_text(lines)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read_list(path, KNOWN)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_double_line_of_a_long_list_is_told_at_once(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("\n".join([*(f"image{number:06}" for number in range(40000)), "image000007"]))
    since = time.perf_counter()
    with pytest.raises(ValueError, match="names image000007 more than once"):
        read_list(path)
    assert time.perf_counter() - since < 10  # 1.6 billion comparisons take longer


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252"])
def test_lists_in_other_encodings_are_refused(tmp_path, encoding):
    path = tmp_path / "list.txt"
    path.write_bytes("a\nstra\u00dfe\n".encode(encoding))
    with pytest.raises(ValueError, match=r"save (it|the file) as UTF-8") as caught:
        read_list(path)
    assert str(path) in str(caught.value)
    assert ("line 2" in str(caught.value)) == (encoding == "cp1252")


def test_dots_belong_to_a_name_but_for_the_suffix_of_an_image(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a.rf.01\nb.rf.02.jpg\nx/c.v2 y/c.v2.png\n")
    assert read_list(path) == ["a.rf.01", "b.rf.02", "c.v2"]


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (None, FileNotFoundError, ["does not exist", "one image id a line"]),
        (" \n", ValueError, ["is empty", "one image id a line"]),
        ("a\nb\na.png\n", ValueError, ["names a more than once", "keep one"]),
    ],
)
def test_bad_lists_are_named(tmp_path, content, kind, words):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(kind) as caught:
        read_list(path)
    assert all(word in str(caught.value) for word in [str(path), *words]), str(caught.value)


def test_what_is_missing_is_named_and_counted():
    assert missing(["b", "a"], {"a": 1, "b": 2}) == ""
    assert missing(["c", "b", "a"], {"b"}) == "a, c"
    assert first_few("gfedcba") == "a, b, c, d, e (7 in all)"


def test_an_image_in_two_splits_is_refused():
    check_disjoint({"train": ["a", "b"], "val": ["c"]})
    with pytest.raises(ValueError, match="'b' is in the lists of both train and test: keep it in one of them"):
        check_disjoint({"train": ["a", "b"], "val": ["c"], "test": ["b"]})


def test_every_fifth_is_held_out_but_not_what_is_kept():
    names = [f"{number:02d}" for number in range(12)]
    train = names[:4] + names[5:9] + names[10:]
    assert hold_out(reversed(names), ["b", "a"]) == {"train": train, "val": ["04", "09"], "test": ["b", "a"]}
    assert hold_out([*names, "a"], ["a"]) == {"train": train, "val": ["04", "09"], "test": ["a"]}
    assert hold_out(names, [], keep=["04", "unknown"])["val"] == ["05", "10"]


def test_the_hash_order_is_fixed():
    """Splits of ours depend on it: another one makes old runs unrepeatable."""
    assert in_hash_order("abcde") == in_hash_order("edcba") == list("dcbea")
    assert in_hash_order("abcde", "0/") != in_hash_order("abcde")
