"""weakseg in Python: methods and data modules by name, trainers that write run directories, finished runs.

```python
data = weakseg.datamodules.Synthetic(train=40, size=64, supervision=weakseg.Supervision("pixels", fraction=0.002))
model = weakseg.methods.TV(data.num_classes, tv_weight=0.3)
weakseg.make_trainer("runs/mine", model, data, max_steps=200).fit(model, data)
labels = weakseg.load_run("runs/mine").predict("photo.jpg")
```
"""

from __future__ import annotations

import importlib.metadata

import datamodules
import experiments  # before Lightning: it silences warnings that tell nothing to act on  # noqa: F401
import methods
from common.model.inference import InferenceConfig
from common.model.networks import NetworkConfig
from common.model.postprocess import PostprocessConfig
from common.training.run import make_trainer
from datamodules.supervision import Supervision
from experiments.runs.load import Run, load_run

__version__ = importlib.metadata.version("weakseg")
__all__ = [
    "InferenceConfig",
    "NetworkConfig",
    "PostprocessConfig",
    "Run",
    "Supervision",
    "datamodules",
    "load_run",
    "make_trainer",
    "methods",
]
