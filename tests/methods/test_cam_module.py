"""The CAM baseline: its loss, its maps and labels, what it refuses and warns of, a run through the command."""

import json

import pytest
import torch
from torch.nn import functional as F

import methods
from common.model.affinity import RADIUS
from common.model.cam_module import BETA
from common.model.networks import NetworkConfig
from common.ops.batch import IGNORE
from common.ops.cam import normalise_cam
from common.ops.crf import dense_crf
from common.ops.refine import pamr
from common.ops.walk import random_walk
from conftest import fit_tiny, weakseg
from datamodules.augmentation import whole
from experiments.runs.pseudo import PseudoLabels

NETWORK = NetworkConfig("Unet", "tu-test_resnet")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = methods.CAM(4, network=NETWORK, scales=[1.0, 1.5]).eval()
    weight = model.network.model.segmentation_head[0].weight
    weight.data = weight.data.abs()  # untrained maps may be nowhere positive
    return model


def batch(count=2, side=32):
    valid = torch.ones(count, side, side, dtype=torch.bool)
    tags = torch.tensor([[True, True, False, True], [True, False, False, False]])[:count]
    mask = torch.full((count, side, side), IGNORE)
    return {"labeled": {"image": torch.rand(count, 3, side, side), "mask": mask, "valid": valid, "tags": tags}}


@pytest.mark.parametrize(("logits", "tags", "wanted"), [((0, 0), (1, 0), 0.693147), ((2, -1), (1, 0), 0.220095)])
def test_the_loss_is_the_multilabel_soft_margin(model, monkeypatch, logits, tags, wanted):
    maps = torch.tensor([*logits, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)[:, :2]
    monkeypatch.setattr(model.network, "activations", lambda image: maps)
    one = batch(1)
    one["labeled"]["tags"] = torch.tensor([[False, *map(bool, tags)]])
    assert model.compute_loss(one).loss.item() == pytest.approx(wanted, abs=1e-6)


def test_the_background_and_padding_are_in_no_loss(model):
    one = batch()
    loss = model.compute_loss(one).loss
    one["labeled"]["tags"][:, 0] = False
    assert model.compute_loss(one).loss == loss
    logits = model.network.activations(one["labeled"]["image"]).mean((2, 3))
    wanted = F.multilabel_soft_margin_loss(logits, one["labeled"]["tags"][:, 1:].float())
    torch.testing.assert_close(loss, wanted)
    one["labeled"]["valid"][:, 16:] = False  # a cell is 16 pixels
    logits = model.network.activations(one["labeled"]["image"])[:, :, :1].mean((2, 3))
    wanted = F.multilabel_soft_margin_loss(logits, one["labeled"]["tags"][:, 1:].float())
    torch.testing.assert_close(model.compute_loss(one).loss, wanted)


def test_maps_are_of_tagged_classes_alone_and_do_not_depend_on_the_other_tags(model):
    image = torch.rand(3, 40, 56)
    both, one = (model.cam_of(image, torch.tensor(tags), (61, 47)) for tags in ([1, 1, 0, 1], [0, 1, 0, 0]))
    assert both.shape == (3, 61, 47)
    assert (both[1] == 0).all()
    torch.testing.assert_close(both[0], one[0])
    assert float(both.min()) >= 0
    assert 0.99 < float(both.max()) <= 1
    with pytest.raises(ValueError, match="maps are made in eval mode"):
        methods.CAM(4, network=NETWORK).cam_of(image, torch.ones(4), (8, 8))


@pytest.mark.parametrize("refine", ["none", "pamr", "crf", "walk"])
def test_pseudo_labels_hold_tagged_classes(model, refine):
    image = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0))
    tags = torch.tensor([False, True, False, True])
    found = model.pseudo_labels(image, tags, (61, 47), refine, 0.3)
    assert found.shape == (61, 47)
    assert found.dtype == torch.int64
    assert {*found.unique().tolist()} <= {0, 1, 3, *([IGNORE] if refine == "crf" else [])}
    assert len(found.unique()) > 1
    nothing = model.pseudo_labels(image, torch.tensor([True, False, False, False]), (61, 47), refine, 0.3)
    assert (nothing == 0).all()
    row = model.pseudo_labels(image[:, :1], tags, (1, 47), refine, 0.3)
    assert row.shape == (1, 47)


def test_a_large_image_in_bytes_is_seen_as_a_small_one(model, monkeypatch):
    g = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 40, 56), generator=g, dtype=torch.uint8)
    told = {"name": ["a"], "size": torch.tensor([[40, 56]]), "tags": torch.tensor([[False, True, False, True]])}
    one = {**told, "image": image, "mask": torch.zeros(1, 40, 56, dtype=torch.uint8)}
    small = whole(one)
    monkeypatch.setattr("datamodules.augmentation.LARGE", 100)
    large = whole(one)
    assert large["image"].dtype == large["mask"].dtype == torch.uint8
    found = [model.predict_labels(model.network, batch, refine=False)[1] for batch in (small, large)]
    assert torch.equal(*found)
    labels = [[*PseudoLabels(model, "pamr", 0.3).predict_step(batch, 0)] for batch in (small, large)]
    assert len(labels[0]) == len(labels[1]) == 1
    assert torch.equal(labels[0][0], labels[1][0])


def test_pseudo_labels_refuse_what_makes_no_sense(model):
    image, tags = torch.rand(3, 32, 32), torch.ones(4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\), got 1"):
        model.pseudo_labels(image, tags, (8, 8), "none", 1)
    with pytest.raises(ValueError, match="refine is none, pamr, crf or walk, got 'mean'"):
        model.pseudo_labels(image, tags, (8, 8), "mean", 0.2)


@pytest.mark.parametrize("options", [
    {"threshold": 1.0}, {"scales": []}, {"scales": [0.0]}, {"num_classes": 1},
    {"inference": methods.CAM(2, network=NETWORK).inference.__class__(flip=True)},
])  # fmt: skip
def test_options_out_of_range_or_without_effect_are_refused(options):
    with pytest.raises(ValueError, match=r"threshold must|at least one class|use scales and flip"):
        methods.CAM(**{"num_classes": 4, "network": NETWORK, **options})


# Through the command -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cam") / "run"
    said = fit_tiny(folder, "--model", "CAM")
    return folder, said


def test_a_run_is_scored_by_its_maps(run):
    folder, said = run
    summary = json.loads((folder / "summary.json").read_text())
    last = summary["last"]
    assert summary["score"] == "val/cam_miou"
    assert summary["best"]["val/cam_miou"] >= last["val/cam_miou"] - 1e-3
    assert {"val/map", "val/f1", "val/cam_threshold", "val/cam_miou_fixed", "val/cam_iou/disc"} <= last.keys()
    assert not any(name.startswith(("val/miou", "val/iou", "val/accuracy")) for name in last)
    curve = json.loads((folder / "cam_curve.json").read_text())
    assert max(curve["cam_miou"]) == pytest.approx(last["val/cam_miou"], abs=1e-3)
    assert curve["threshold"][curve["cam_miou"].index(max(curve["cam_miou"]))] == last["val/cam_threshold"]
    assert "val/cam_miou" in said
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert float(state["network.background"]) == pytest.approx(min(max(last["val/cam_threshold"], 0.01), 0.99))


def test_a_run_is_tested_and_predicts_by_the_tags_that_it_finds(run, tmp_path):
    folder, _ = run
    said = weakseg("test", "--run", folder)
    assert "test/cam_miou" in said
    assert "test/miou" not in said
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (50, 40), (90, 120, 30)).save(tmp_path / "photos" / "a.png")
    said = weakseg("predict", "--run", folder, "--images", tmp_path / "photos", "--output", tmp_path / "labels")
    assert "sigmoid(z) > 0.5" in said
    assert Image.open(tmp_path / "labels" / "a.png").size == (50, 40)


def test_a_regime_without_tags_and_a_method_without_pixels_are_refused(tmp_path):
    wrong = ["--data.init_args.supervision", "{kind: pixels, fraction: 0.05}"]
    said = weakseg("fit", "--config", "tests/tiny.yaml", "--model", "CAM", "--run_dir", tmp_path, *wrong, expect=1)
    assert "CAM does not learn from supervision.kind pixels: choose one of tags, boxes" in said
    wrong = ["--data.init_args.supervision", "{kind: tags, fraction: null}"]
    said = fit_tiny(tmp_path / "one", *wrong, expect=1)
    assert "Supervised does not learn from supervision.kind tags" in said
    assert "the method CAM" in said


def test_data_without_a_background_are_refused_and_classes_in_every_image_told(tmp_path):
    from conftest import draw_folder, on_folder

    root = draw_folder(tmp_path / "data")
    said = fit_tiny(tmp_path / "one", *on_folder(root), "--model", "CAM", expect=1)
    assert "need 'background' as the first class, but Folder has none" in said
    (root / "classes.txt").write_text("background\nred thing\nblue thing\n")
    with pytest.warns(UserWarning, match="every image of train shows red thing"):
        fit_tiny(tmp_path / "two", *on_folder(root), "--model", "CAM", "--trainer.max_steps", "1")


# Refinements, with their constants written out ---------------------------------------------------------------------


def test_maps_are_by_default_summed_over_four_scales_and_the_mirror_image_and_divided_by_their_maximum():
    torch.manual_seed(0)
    model = methods.CAM(4, network=NETWORK).eval()
    head = model.network.model.segmentation_head[0].weight
    head.data = head.data.abs()
    image, total = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)), 0.0
    with torch.no_grad():
        for height, width in ((32, 48), (64, 96), (96, 144), (128, 192)):  # 0.5, 1, 1.5 and 2
            scaled = F.interpolate(image, (height, width), mode="bilinear", align_corners=False)
            for flip in (False, True):
                a = F.conv2d(model.network.encode(scaled.flip(-1) if flip else scaled)[0][-1], head).relu()
                large = F.interpolate(a, (61, 47), mode="bilinear", align_corners=False)
                total = total + (large.flip(-1) if flip else large)
        wanted = total / (total.amax((2, 3), keepdim=True) + 1e-5)
    torch.testing.assert_close(model.cam_of(image[0], torch.ones(4), (61, 47)), wanted[0])
    assert model.pseudo_threshold == pytest.approx(0.15)
    rates = [group["lr"] for group in model.make_optimizer().param_groups]
    assert rates[0] * 10 == pytest.approx(rates[-1])  # the encoder's, the head's


def test_the_network_by_itself_says_the_background_and_the_maps_of_the_classes_that_it_finds():
    torch.manual_seed(0)
    network, image = methods.CAM(4, network=NETWORK).eval().network, torch.rand(1, 3, 60, 45)
    with torch.no_grad():
        features = network.encode(image)[0][-1]
        mean, weight = features.mean((0, 2, 3)), torch.randn(3, features.shape[1])
        wanted = torch.tensor([0.1, -0.1, 0.1])  # the means of the activations: the second class is not found
        weight += (wanted - weight @ mean)[:, None] * mean / mean.square().sum()
        network.model.segmentation_head[0].weight.copy_(weight[:, :, None, None])
        large = F.interpolate(F.conv2d(features, weight[:, :, None, None]), (64, 48), mode="bilinear")[0, :, :60, :45]
        found = network(image)[0].exp()
    assert (large.amax((1, 2)) > 0.1).all()
    cam = large.relu() / (large.relu().amax((1, 2), keepdim=True) + 1e-5)
    torch.testing.assert_close(found[[1, 3]], cam[[0, 2]].clamp(min=1e-6), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[0], torch.full((60, 45), 0.15))
    assert found[2].max() < 1e-5


def smooth(*size, seed=0):
    """Planes (3, H, W) in [0, 1] without edges."""
    small = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, size, mode="bilinear", align_corners=True)[0]


def test_the_walk_goes_256_steps_along_the_colours_of_cells_of_4_pixels_less_than_5_apart(model):
    image, tags = 0.7 * smooth(26, 30), torch.tensor([False, True, False, True])
    places = torch.cartesian_prod(torch.arange(6), torch.arange(8))
    whole = F.interpolate(image[None], (24, 32), mode="bilinear", align_corners=False)[0]  # cells cover the image
    cells = [whole[:, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].double().mean((1, 2)) for y, x in places.tolist()]
    colors = torch.stack(cells)
    apart = (places[:, None] - places).square().sum(2)
    affinity = (-(colors[:, None] - colors).square().sum(2) / (2 * 0.1**2)).exp()
    weights = torch.where(apart < 5**2, affinity**8, 0)
    cam = model.cam_of(image, tags, (6, 8)).double()
    walked = cam.flatten(1) @ torch.linalg.matrix_power(weights / weights.sum(0), 256)
    walked = (walked / (walked.amax(1, keepdim=True) + 1e-5)).view(1, 3, 6, 8)
    assert (walked[0] - cam).abs().max() > 0.1
    assert walked[0, 0].min() < 0.9
    wanted = F.interpolate(walked, (61, 47), mode="bilinear", align_corners=False)[0].float()
    torch.testing.assert_close(model.refined_cam(image, tags, (61, 47), "walk"), wanted, atol=1e-4, rtol=0)  # float32


def slow_pamr(image, maps):
    """PAMR of maps (C, H, W) by an image (3, H, W): ten means over eight neighbours at each of six distances."""
    height, width = image.shape[1:]

    def shifted(planes, dy, dx):
        rows, columns = ((torch.arange(side) + d).clamp(0, side - 1) for side, d in ((height, dy), (width, dx)))
        return planes[:, rows][:, :, columns]

    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    offsets = [(d * y, d * x) for d in (1, 2, 4, 8, 12, 24) for y, x in steps]
    near = torch.stack([shifted(image, *offset) for offset in offsets])
    deviation = torch.cat([near, image.expand(6, -1, -1, -1)]).std(0)
    weights = (-((near - image).abs() / (1e-8 + 0.1 * deviation)).mean(1)).softmax(0)
    for _ in range(10):
        maps = sum(w * shifted(maps, *offset) for w, offset in zip(weights, offsets, strict=True))
    return maps


def test_pamr_takes_ten_means_over_six_distances(model):
    image, tags = smooth(60, 56), torch.tensor([False, True, False, True])
    cam = model.cam_of(image, tags, (60, 56))
    wanted = slow_pamr(image.double(), cam.double())
    assert (wanted - cam).abs().max() > 0.05
    found = model.refined_cam(image, tags, (60, 56), "pamr")
    torch.testing.assert_close(found, wanted.float(), atol=1e-5, rtol=0)


def test_labels_by_a_crf_are_seeds_of_two_thresholds_each_of_which_the_crf_has_smoothed(model, monkeypatch):
    image, tags = smooth(40, 56), torch.tensor([False, True, False, True])
    image = (image + 0.1 * torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    cam = (3 * smooth(40, 56, seed=4) - 1.5).clamp(0, 1) * torch.tensor([1, 0, 1])[:, None, None]
    monkeypatch.setattr(model, "cam_of", lambda *_: cam)
    plain, crf = [], []
    for background in (0.6, 0.1):  # twice and a third of 0.3
        labels = torch.cat([torch.full_like(cam[:1], background), cam]).argmax(0)
        classes = labels.unique()
        other = 0.3 / (len(classes) - 1)
        unary = torch.stack([torch.where(labels == k, 0.7, other) for k in classes])
        options = {"weight": 10.0, "sigma_xy": 50.0, "sigma_rgb": 5.0, "smooth_weight": 3.0, "smooth_sigma": 3.0}
        found = dense_crf(unary, image, **options, iterations=10, stride=4)
        plain.append(labels)
        crf.append(classes[found.argmax(0)])
    plain, wanted = (torch.where(one > 0, one, torch.where(two > 0, IGNORE, 0)) for one, two in (plain, crf))
    assert {*wanted.unique().tolist()} == {0, 1, 3, IGNORE}
    found = model.pseudo_labels(image, tags, (40, 56), "crf", 0.3)
    assert torch.equal(found, wanted)
    assert (found != plain).float().mean() > 0.01
    assert torch.equal(model.pseudo_labels(image, tags, (80, 112), "crf", 0.3)[::2, ::2], wanted)


# Learned affinities ------------------------------------------------------------------------------------------------


def learn_affinities(folder, kind, *words, expect=0):
    tiny = ["fit", "--config", "tests/tiny.yaml", "--model", "CAM", "--model.affinity", "true", "--model.scales", "[1]"]
    labels = ["--data.init_args.supervision", f"{{kind: {kind}, fraction: null}}"]
    return weakseg(*tiny, *labels, "--run_dir", folder, *words, expect=expect)


def test_learned_affinities_are_those_of_the_three_last_maps_and_padding_has_no_pair():
    torch.manual_seed(0)
    model = methods.CAM(4, affinity=True, network=NETWORK).eval()
    one, layers = batch(side=64)["labeled"], model.affinity
    with torch.no_grad():
        maps = layers.encoder(model.network.prepared(one["image"]))[-3:]
        assert [layer.weight.shape[0] for layer in layers.reduce] == [64, 128, 256]
        reduced = [F.elu(F.conv2d(m, layer.weight)) for m, layer in zip(maps, layers.reduce, strict=True)]
        size = maps[0].shape[2:]
        reduced = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in reduced]
        f = F.elu(F.conv2d(torch.cat(reduced, 1), layers.join.weight))
        found = model.walk_affinity(one["image"])
        offsets = [(y, x) for y in range(5) for x in range(-4, 5) if y**2 + x**2 < 25 and (y > 0 or x > 0)]
        assert found.shape[1] == len(offsets)
        for number, (dy, dx) in enumerate(offsets):
            here = f[:, :, : size[0] - dy, max(0, -dx) : size[1] - max(0, dx)]
            there = f[:, :, dy:, max(0, dx) : size[1] + min(0, dx)]
            wanted = (-(here - there).abs().mean(1)).exp()
            at = found[:, number, : size[0] - dy, max(0, -dx) : size[1] - max(0, dx)]
            torch.testing.assert_close(at, wanted, atol=1e-5, rtol=1e-4)
        one["mask"] = torch.randint(3, (2, 64, 64), generator=torch.Generator().manual_seed(0))
        whole = model.compute_loss({"labeled": one}).loss
        one["valid"][:, 40:] = False
        shown = model.compute_loss({"labeled": one}).loss
        one["mask"][:, 40:], one["valid"][:] = IGNORE, True
        torch.testing.assert_close(model.compute_loss({"labeled": one}).loss, shown)
        assert shown != whole


def test_affinities_need_a_trained_classifier_and_labels_of_pixels(tmp_path):
    assert "give it with --init_from" in learn_affinities(tmp_path / "one", "dense", expect=1)
    assert not (tmp_path / "one" / "config.yaml").exists()
    assert "CAM does not learn from supervision.kind tags" in learn_affinities(tmp_path / "two", "tags", expect=1)
    with pytest.raises(ValueError, match=r"leave network\.freeze"):
        methods.CAM(4, affinity=True, network=NetworkConfig("Unet", "tu-test_resnet", freeze="encoder"))


def test_seeds_label_what_is_sure_and_nothing_against_the_plain_labels(model):
    image = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0))
    tags = torch.tensor([False, True, False, True])
    plain, seeds = (model.pseudo_labels(image, tags, (61, 47), "pamr", 0.3, one) for one in (False, True))
    assert {*seeds.unique().tolist()} > {IGNORE}
    assert (seeds == plain)[seeds != IGNORE].all()
    cam = model.refined_cam(image, tags, (61, 47), "pamr")
    assert ((seeds == IGNORE) == ((cam.amax(0) > 0.1) & (cam.amax(0) <= 0.6))).all()


@pytest.mark.parametrize("refine", ["pamr", "walk"])
def test_only_maps_of_tagged_classes_are_refined_and_they_come_out_as_among_all(model, refine):
    image = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0))
    tags = torch.tensor([False, True, False, True])
    found = model.refined_cam(image, tags, (61, 47), refine)
    if refine == "pamr":
        wanted = pamr(image[None], model.cam_of(image, tags, (40, 56))[None])
    else:
        affinity = model.walk_affinity(image[None])
        cam = model.cam_of(image, tags, tuple(affinity.shape[2:]))[None]
        wanted = normalise_cam(random_walk(affinity, cam, RADIUS, BETA), "max")
    torch.testing.assert_close(found[None], F.interpolate(wanted, (61, 47), mode="bilinear", align_corners=False))
    assert not found[1].any()
    assert not model.refined_cam(image, torch.zeros(4, dtype=torch.bool), (61, 47), refine).any()


def test_affinities_are_learned_from_seeds_while_the_classifier_stays(run, tmp_path):
    folder, _ = run
    seeds, grown = tmp_path / "seeds", tmp_path / "grown"
    weakseg("pseudo", "--run", folder, "--output", seeds, "--seeds", "--refine", "pamr")
    assert json.loads((seeds / "pseudo.json").read_text())["unlabeled"] > 0
    words = ["--data.init_args.pseudo_masks", seeds, "--init_from", folder / "checkpoints" / "last.ckpt"]
    said = learn_affinities(tmp_path / "run", "dense", *words)
    assert "drawn anew: network.affinity" in said
    last = [one / "checkpoints" / "last.ckpt" for one in (folder, tmp_path / "run")]
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in last)
    kept = before.keys() - {"network.background"}  # the best threshold is that after the walk
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert "test/cam_miou" in weakseg("test", "--run", tmp_path / "run")
    walk = ["--output", grown, "--refine", "walk"]
    assert "after the walk" not in weakseg("pseudo", "--run", tmp_path / "run", *walk)  # it was scored after it
    assert "after the walk" in weakseg("pseudo", "--run", folder, *walk, "--overwrite")
    weakseg("pseudo", "--run", tmp_path / "run", *walk, "--overwrite")
    learn_affinities(tmp_path / "run", "dense", *words[:2], "--trainer.max_steps", "9", "--resume", "auto")
    from PIL import Image

    assert any(Image.open(one).tobytes() != Image.open(seeds / one.name).tobytes() for one in grown.glob("*.png"))
