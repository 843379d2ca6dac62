"""Predictions at the ends of their range: every loss and its gradient stay finite, and no loss falls below 0."""

import importlib
import inspect

import pytest
import torch
from torch.nn import functional as F

from common.model.labeled import LabeledConfig
from common.ops.affinity import dense_kernel, positions, stack_modalities, window_kernel
from common.ops.batch import IGNORE
from common.ops.boxes import class_boxes
from common.ops.tensors import at_least_fp32
from common.ops.walk import feature_distance
from conftest import ROOT

CLASSES = 3
CELL = 4


def kernel(d, make=window_kernel):
    return make(stack_modalities([(positions(d["image"]), 3.0), (d["image"], 0.1)]), d["valid"])


def unit(z):
    return F.normalize(z.float(), dim=1, eps=1e-6).flatten(2)


def error(d):
    return F.cross_entropy(d["z"].float(), d["labels"], reduction="none")


def regions(d):
    """A plane of logits per region, and which regions hold a valid pixel."""
    return d["z"][:, 0, ::CELL, ::CELL], d["valid"][:, ::CELL, ::CELL]


def weighted(f, d, kind):
    rrn = importlib.import_module("methods.rrn.losses")
    weight = rrn.region_reliability(torch.stack([d["p"], d["teacher"]]), d["valid"], CELL, kind)
    return f(error(d), d["valid"], weight, CELL)


def aalr():
    return importlib.import_module("methods.aalr.losses")


def objects(d):
    """Maps of the objects' classes."""
    return d["p"][:, 1:]


def parts(d):
    """Those of an image and of its two parts."""
    return [objects(d), objects(d) * d["labels"][:, None] / CLASSES, objects(d).flip(1)]


# A call of each loss. d: logits z, p = softmax(z), teacher (a saturated prediction), labels, image, mask, valid, key.
LOSSES = {
    "common.ops.losses.partial_cross_entropy": [lambda f, d: f(d["z"], d["mask"], d["valid"])],
    "common.ops.losses.tag_loss": [lambda f, d: f(d["z"][:, :, 0, 0], d["z"][:, :, -1, -1] > 0)],
    "common.model.labeled.labeled_loss": [
        lambda f, d, o=o, w=w: f(d["z"], d["mask"], d["valid"], LabeledConfig(**o), w)
        for o, w in (
            ({"class_weights": [1.0, 0.0, 9.0]}, torch.tensor([1.0, 0.0, 9.0])),
            ({"ohem": 0.7, "ohem_kept": 3, "dice": 1.0, "focal": 1.0}, None),
        )
    ],
    "common.ops.losses.pixel_consistency": [
        lambda f, d, c=c, s=s: f(d["z"], d["teacher"], d["valid"], c, 0.97, s and d["labels"] > 0)[0]
        for c in ("batch", "pixel", "none")
        for s in (None, True)
    ],
    "common.ops.losses.total_variation": [
        lambda f, d, v=v, e=e: f(d["p"], d["valid"], variant=v, eps=e)
        for v, e in (("aniso", 0), ("aniso", 1e-3), ("iso", 1e-3), ("vector", 1e-3))
    ],
    "common.ops.losses.total_variation_sum": [lambda f, d: f(d["p"], d["valid"])],
    "common.ops.boxes.projection_loss": [lambda f, d: f(*class_boxes(d["labels"], d["p"])[::-1])],
    "common.ops.boxes.pairwise_loss": [lambda f, d: f(d["z"], d["image"], d["labels"] > 0, d["valid"])],
    "common.ops.walk.affinity_loss": [lambda f, d: f(feature_distance(d["z"], 3), d["mask"], 3)],
    "common.model.pairs.cross_entropies": [lambda f, d: f([d["z"]], d["labels"][None]).sum()],
    "common.model.pairs.pixel_mean": [lambda f, d: f(error(d), d["valid"])],
    "methods.aalr.losses.affinity_loss": [
        lambda f, d, m=m: f(*aalr().affinity_groups(d["z"], d["mask"], metric=m, distances=(1, 2)))
        for m in ("kl_channel", "kl", "dot")
    ],
    "methods.aalr.losses.reassign_loss": [
        lambda f, d: f(d["z"], *aalr().reassigned(
            unit(d["z"]).view_as(d["z"]), d["mask"], torch.ones(2, CLASSES, dtype=torch.bool)
        ))
    ],
    "methods.box.losses.absent_loss": [lambda f, d: f(d["z"], d["labels"], torch.ones(2, CLASSES, dtype=torch.bool))],
    "methods.cpn.losses.triplet_loss": [lambda f, d: f(3 * [objects(d)], parts(d), d["valid"], torch.ones(2), 20)],
    "methods.cpn.losses.region_loss": [lambda f, d: f(parts(d), 3 * [objects(d)], d["valid"], torch.ones(2), 20)],
    "methods.dfr.losses.feature_regularizer": [
        lambda f, d, n=n: f(d["p"], kernel(d), d["valid"], n)[0] for n in ("pixels", "mass")
    ],
    "methods.dfr.losses.pair_consistency": [lambda f, d: f(unit(d["z"]), d["mask"].flatten(1))[0]],
    "methods.level_set.losses.region_variance": [
        lambda f, d: f(d["p"], d["image"], d["valid"]),
        lambda f, d: f(d["p"], d["image"], d["valid"], bias=field(d)),
    ],
    "methods.level_set.losses.region_variance_sum": [lambda f, d: f(d["p"], d["image"], d["valid"])],
    "methods.level_set.losses.roughness_sum": [lambda f, d: f(field(d), d["valid"])],
    "methods.regularized.losses.crf": [lambda f, d: f(d["p"], kernel(d, dense_kernel))],
    "methods.regularized.losses.normalized_cut": [
        lambda f, d: f(d["p"], kernel(d, dense_kernel)),
        lambda f, d: f(d["p"], kernel(d, dense_kernel), d["mask"]),
    ],
    "methods.regularized.losses.gated_crf": [lambda f, d: f(d["p"], kernel(d), d["valid"])],
    "methods.rrn.losses.local_selection_loss": [lambda f, d: f(error(d), d["valid"], regions(d)[1], CELL)],
    "methods.rrn.losses.dynamic_region_loss": [
        lambda f, d, k=k: weighted(f, d, k) for k in ("js", "agree", "kl", "none")
    ],
    "methods.rrn.losses.discriminator_loss": [
        lambda f, d: f(regions(d)[0], -regions(d)[0], regions(d)[1], regions(d)[1]),
    ],
    "methods.rrn.losses.feature_matching_loss": [
        lambda f, d: f(d["z"], d["z"].flip(1), d["valid"], d["valid"]),
    ],
    "methods.scl.losses.relaxed_cross_entropy": [lambda f, d: f(d["z"], d["mask"], d["valid"])],
    "methods.scl.losses.structured_consistency": [
        lambda f, d, w=w, p=p: f(
            d[w].flatten(2), d["teacher"].flatten(2), d["valid"].flatten(1), d["labels"].flatten(1) > 0, p
        )
        for w in ("p", "z")
        for p in ("inside", "both_sides", "cross", "all")
    ],
    "methods.unimatch.losses.pseudo_label_loss": [
        lambda f, d: f(d["z"], d["labels"], d["teacher"].amax(1), d["valid"], 0.95)
    ],
}  # fmt: skip
# Public functions of the files of losses that give no loss. A new paper's file is listed with its losses.
OTHERS = {
    "common.model.labeled": {"balanced_weights", "given_weights", "weights_for"},
    "common.ops.losses": {"contrast_weights", "hard_pixels", "neighbour_pairs"},
    "common.ops.boxes": {"class_boxes", "rgb_to_lab"},
    "methods.aalr.losses": {
        "affinity_groups", "around", "centre_sums", "mask_probabilities", "moved_centres", "ngwp_logits", "reassigned",
        "similarities",
    },
    "methods.cpn.losses": {
        "complementary", "gaps", "hidden_cells", "hidden_pixels", "hidden_segments", "keep_max", "looked_at",
        "minimum_pool", "normalised", "resized_mean", "top_mean", "with_background",
    },
    "methods.dfr.losses": {"cell_labels", "draw_cells", "dynamic_kernel"},
    "methods.level_set.losses": {"closed_form_field", "head_field", "reduce", "region_tones", "unit_mean"},
    "methods.regularized.losses": {"clamp_seeds"},
    "methods.rrn.losses": {
        "at_pixels", "cell_lengths", "region_means", "region_reliability", "region_scores", "region_sums"
    },
    "methods.scl.losses": {"sample_pixels"},
    "methods.unimatch.losses": {"complementary_channels", "dropped_channels"},
}  # fmt: skip


def field(d):
    level_set = importlib.import_module("methods.level_set.losses")
    return level_set.head_field(d["z"][:, :1], d["valid"])


def scene(side, logits, dtype, labelled=0.5, seed=0):
    """What losses take; `logits` are made of the labels (B, 1, H, W) and random signs (B, K, H, W)."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (2, side, side), generator=g)
    signs = torch.randint(0, 2, (2, CLASSES, side, side), generator=g) * 2.0 - 1
    z = logits(labels[:, None], signs).to(dtype).requires_grad_()
    mask = labels.masked_fill(torch.rand(labels.shape, generator=g) >= labelled, IGNORE)
    valid = torch.rand(labels.shape, generator=g) < 0.8
    valid[:, 0, 0] = True
    teacher = (1e4 * signs.flip(1)).softmax(1)
    image = torch.rand(2, 3, side, side, generator=g).round()
    key = torch.tensor([[0, 0], [0, 1]])
    planes = {"labels": labels, "mask": mask, "valid": valid, "teacher": teacher, "image": image, "key": key}
    return planes | {"z": z, "p": at_least_fp32(z).softmax(1)}  # as every method takes it


def is_label(labels):
    return torch.arange(CLASSES)[:, None, None] == labels


SCENES = {
    "saturated": (8, lambda labels, signs: 1e4 * signs, 0.5),
    "right": (8, lambda labels, signs: 1e4 * (2.0 * is_label(labels) - 1), 1.0),
    "wrong": (8, lambda labels, signs: -1e4 * (2.0 * is_label(labels) - 1), 1.0),
    "without a class": (8, lambda labels, signs: torch.where(is_label(0 * labels), -1e4, signs), 0.5),
    "one class": (8, lambda labels, signs: 1e4 * (2.0 * is_label(0 * labels) - 1) + 0 * signs, 0.5),
    "undecided": (8, lambda labels, signs: 0 * signs, 0.5),
    "one pixel": (1, lambda labels, signs: 1e4 * signs, 1.0),
    "no label": (8, lambda labels, signs: 1e4 * signs, 0.0),
    "no label on one pixel": (1, lambda labels, signs: signs, 0.0),
}


def exists(module):
    """A paper's folder may be gone."""
    return (ROOT / module.replace(".", "/")).with_suffix(".py").exists()


def test_every_loss_of_these_files_is_tried():
    for name in filter(exists, OTHERS):
        module = importlib.import_module(name)
        public = {
            key for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == name and not key.startswith("_")
        }  # fmt: skip
        tried = {key.rsplit(".", 1)[1] for key in LOSSES if key.startswith(f"{name}.")}
        known = tried | OTHERS[name]
        assert public == known, f"{name}: give LOSSES a call of it, or OTHERS its name: {public ^ known}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [name for name in LOSSES if exists(name.rsplit(".", 1)[0])])
def test_saturated_predictions_give_finite_losses_and_gradients(name, dtype):
    module, function = name.rsplit(".", 1)
    loss = getattr(importlib.import_module(module), function)
    for what, (side, logits, labelled) in SCENES.items():
        for number, call in enumerate(LOSSES[name]):
            d = scene(side, logits, dtype, labelled)
            value = call(loss, d)
            (slope,) = torch.autograd.grad(value, d["z"])
            assert torch.isfinite(value), (what, number)
            assert value >= -1e-5, (what, number)  # AffinityNet's 1e-5 within the logarithm
            assert torch.isfinite(slope).all(), (what, number)
