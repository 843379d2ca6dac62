"""Callbacks on their own; what runs write is in tests/test_cli.py."""

from types import SimpleNamespace

import torch

from common.model.networks import NetworkConfig
from common.training.predictions import PredictionPictures
from methods.supervised.module import Supervised


def test_pictures_show_the_network_that_is_scored(tmp_path):
    torch.manual_seed(0)
    unet = {"decoder_channels": [8, 8, 8, 8], "encoder_depth": 4}
    model = Supervised(3, network=NetworkConfig(encoder="tu-test_resnet", decoder=unet), ema_decay=0.5).eval()
    for parameter in model.average.network.parameters():
        parameter.mul_(-1)
    image, mask = torch.rand(1, 3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.int64)
    batch = {"image": image, "mask": mask, "name": ["a"], "size": torch.tensor([[32, 32]])}
    trainer = SimpleNamespace(
        is_global_zero=True, sanity_checking=False, datamodule=SimpleNamespace(colors=[(n, n, n) for n in range(3)])
    )
    pictures = PredictionPictures(tmp_path)
    pictures.on_validation_batch_end(trainer, model, None, batch, 0)
    average, network = (one(image).argmax(1)[0] for one in (model.average.network, model.network))
    assert not torch.equal(average, network)
    assert torch.equal(torch.from_numpy(pictures.samples[0].labels).long(), average)
