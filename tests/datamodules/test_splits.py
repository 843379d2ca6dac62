"""Lists on disk, and splits of ours."""

import pytest

from datamodules.splits import check_disjoint, first_few, hold_out, in_hash_order, missing, read_list


def test_lists(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("b\n\nimages/a.jpg masks/a.png\nfolder\\c.d.jpg\r\n", encoding="utf-8-sig")
    assert read_list(path) == ["b", "a", "c.d"]


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
