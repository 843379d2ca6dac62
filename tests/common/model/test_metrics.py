"""The data-set-level confusion matrix and its scores."""

import pickle

import pytest
import torch
from torch import nn

from common.model.metrics import SegmentationMetrics, scores
from common.ops.batch import IGNORE

# Truth 0: 6 right, 2 taken for 1. Truth 1: 3 right, 1 taken for 0. Classes 2 and 3 are nowhere.
HAND = torch.tensor([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_scores_of_a_hand_matrix_leave_out_the_absent_class():
    result = scores(HAND)
    assert result["iou"].tolist() == pytest.approx([100 * 6 / 9, 100 * 3 / 6, float("nan"), float("nan")], nan_ok=True)
    assert float(result["miou"]) == pytest.approx(100 * (6 / 9 + 3 / 6) / 2)
    assert float(result["accuracy"]) == pytest.approx(100 * 9 / 12)


def test_a_class_that_is_only_predicted_counts_as_zero():
    confusion = HAND.clone()
    confusion[0, 3] = 1
    result = scores(confusion)
    assert float(result["iou"][3]) == 0
    assert float(result["miou"]) == pytest.approx(100 * (6 / 10 + 3 / 6 + 0) / 3)


def test_a_perfect_prediction_is_one_hundred():
    result = scores(torch.diag(torch.tensor([5, 0, 7])))
    assert float(result["miou"]) == 100
    assert float(result["accuracy"]) == 100


def test_update_counts_by_hand_without_ignored_and_padded_pixels():
    prediction = torch.tensor([[[0, 1, 1, 2], [2, 0, 0, 1]]])
    mask = torch.tensor([[[0, 0, 1, IGNORE], [1, 0, 2, 1]]])
    valid = torch.tensor([[[True, True, True, True], [True, True, True, False]]])
    metric = SegmentationMetrics(3)
    metric.update(prediction, mask, valid)
    result = metric.compute()
    assert result["confusion"].tolist() == [[2, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert float(result["accuracy"]) == pytest.approx(100 * 3 / 6)
    for name, value in scores(result["confusion"]).items():
        torch.testing.assert_close(result[name], value)
    metric.reset()
    metric.update(prediction, mask)
    assert metric.compute()["confusion"].tolist() == [[2, 1, 0], [0, 2, 1], [1, 0, 0]]


def test_counts_equal_a_slow_count_and_do_not_depend_on_batches():
    torch.manual_seed(0)
    prediction, mask = torch.randint(0, 5, (6, 9, 7)), torch.randint(0, 6, (6, 9, 7))
    mask[mask == 5] = IGNORE
    valid = torch.rand(6, 9, 7) < 0.8
    expected = torch.zeros(5, 5, dtype=torch.int64)
    triples = zip(mask.flatten().tolist(), prediction.flatten().tolist(), valid.flatten().tolist(), strict=True)
    for truth, guess, inside in triples:
        if inside and truth != IGNORE:
            expected[truth, guess] += 1
    for sizes in ([6], [1, 5], [2, 2, 2], [1] * 6):
        metric = SegmentationMetrics(5)
        for p, m, v in zip(prediction.split(sizes), mask.split(sizes), valid.split(sizes), strict=True):
            metric.update(p, m, v)
        assert torch.equal(metric.compute()["confusion"], expected)


def test_the_mean_is_over_the_data_set_not_over_images():
    metric = SegmentationMetrics(2)
    metric.update(torch.zeros(1, 1, 10, dtype=torch.int64), torch.zeros(1, 1, 10, dtype=torch.int64))  # alone: 100
    metric.update(torch.tensor([[[0, 1]]]), torch.tensor([[[1, 1]]]))  # alone: (0 + 50) / 2
    assert float(metric.compute()["miou"]) == pytest.approx(100 * (10 / 11 + 1 / 2) / 2)


def test_counting_stays_exact_beyond_float32():
    metric = SegmentationMetrics(2)
    metric.confusion += 2**24
    metric.update(torch.tensor([[[1]]]), torch.tensor([[[1]]]))
    assert metric.compute()["confusion"].dtype == torch.int64
    assert int(metric.compute()["confusion"][1, 1]) == 2**24 + 1


@pytest.mark.parametrize("how", ["ignored", "invalid", "empty"])
def test_nothing_to_count_gives_nan_not_a_number_that_looks_measured(how):
    mask = torch.full((1, 2, 2), IGNORE if how == "ignored" else 0)
    metric = SegmentationMetrics(3)
    prediction = torch.zeros(1, 2, 2, dtype=torch.int64)
    if how == "empty":
        prediction, mask = prediction[:0], mask[:0]
    metric.update(prediction, mask, torch.zeros_like(mask, dtype=torch.bool) if how == "invalid" else None)
    result = metric.compute()
    assert int(result["confusion"].sum()) == 0
    assert all(torch.isnan(result[name]).all() for name in ("miou", "accuracy", "iou"))
    one = torch.ones(1, 1, 1, dtype=torch.int64)
    metric.update(one, one)  # and it still counts
    assert float(metric.compute()["miou"]) == 100


def test_a_returned_matrix_is_not_changed_by_later_updates():
    metric = SegmentationMetrics(2)
    one = torch.ones(1, 1, 1, dtype=torch.int64)
    metric.update(one, one)
    before = metric.compute()["confusion"]
    metric.update(one, one)
    assert before.tolist() == [[0, 0], [0, 1]]


def test_it_lives_in_a_module_without_entering_its_checkpoint():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.metrics = nn.ModuleDict({"network": SegmentationMetrics(2)})

    holder = Holder().double().half()  # a module's precision must not reach the counts
    assert holder.state_dict() == {}
    metric = holder.metrics["network"]
    one = torch.ones(1, 1, 1, dtype=torch.int64)
    metric.update(one, one)
    assert metric.confusion.dtype == torch.int64
    assert metric.to("meta").confusion.device.type == "meta"


def test_processes_are_summed():
    """What torchmetrics does on two processes: gather the states and reduce them."""
    one = torch.ones(1, 1, 1, dtype=torch.int64)
    metric = SegmentationMetrics(2)
    metric.dist_sync_fn = lambda state, group=None: [state, 2 * state]
    metric.distributed_available_fn = lambda: True
    metric.update(one, one)
    assert metric.compute()["confusion"].tolist() == [[0, 0], [0, 3]]
    assert metric.confusion.tolist() == [[0, 0], [0, 1]]  # its own again


def test_it_survives_pickling_and_reset():
    one = torch.ones(1, 1, 1, dtype=torch.int64)
    metric = SegmentationMetrics(2)
    metric.update(one, one)
    twin = pickle.loads(pickle.dumps(metric))
    assert twin.compute()["confusion"].tolist() == [[0, 0], [0, 1]]
    metric.reset()
    metric.update(0 * one, one)
    assert metric.compute()["confusion"].tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize(
    ("prediction", "mask", "message"),
    [
        ([[[0, 3]]], [[[0, 0]]], "prediction holds class 3, outside 0..2"),
        ([[[0, -1]]], [[[0, 0]]], "prediction holds class -1"),
        ([[[0, 0]]], [[[0, 3]]], "mask holds class 3"),
        ([[[0, 0]]], [[[0]]], "differ in shape"),
    ],
)
def test_wrong_classes_and_shapes_are_refused(prediction, mask, message):
    with pytest.raises(ValueError, match=message):
        SegmentationMetrics(3).update(torch.tensor(prediction), torch.tensor(mask))


@pytest.mark.parametrize("num_classes", [1, 256])
def test_class_numbers_that_cannot_be_are_refused(num_classes):
    with pytest.raises(ValueError, match="num_classes must be from 2 to 255"):
        SegmentationMetrics(num_classes)
