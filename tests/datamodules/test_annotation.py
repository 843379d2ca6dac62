"""The folder of a drawn annotation: when it is found again, and when all is drawn again."""

import pytest

from datamodules import annotation
from datamodules.sets.synthetic import Synthetic
from datamodules.supervision import Supervision

SUPERVISION = Supervision(kind="pixels", fraction=0.1)


def scenes(cache, **options):
    return Synthetic(train=2, val=1, side=16, size=16, cache_dir=str(cache), **{"supervision": SUPERVISION} | options)


@pytest.mark.parametrize(
    "options",
    [{"seed": 1}, {"supervision": Supervision(kind="pixels", fraction=0.2)}, {"size": 8}, {"train": 3}, {"side": 20}],
    ids=str,
)
def test_what_an_annotation_depends_on_is_in_its_name(options, tmp_path):
    other = Synthetic(**{"train": 2, "side": 16, "size": 16, "supervision": SUPERVISION} | options)
    assert other.annotation_dir().name != scenes(tmp_path).annotation_dir().name


def test_another_version_of_the_drawing_code_draws_again(tmp_path, monkeypatch):
    scenes(tmp_path).prepare_data()
    (old,) = tmp_path.iterdir()
    monkeypatch.setattr(annotation, "VERSION", annotation.VERSION + 1)
    data = scenes(tmp_path)
    data.prepare_data()
    assert {*tmp_path.iterdir()} == {old, data.annotation_dir()}
    assert old != data.annotation_dir()
