"""PyTorch: every tower, on every device; what the others must agree with."""

import numpy as np
import torch

from ..clip import Clip
from .base import Runner, TowerKind


def runner(clip: Clip, kind: TowerKind) -> Runner:
    """A tower of a model as it is in this process, for comparison with others."""

    def run(inputs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            given = torch.from_numpy(inputs).to(clip.device)
            features = clip.image_features(clip.normalize(given)) if kind == "image" else clip.text_features(given)
            return features.float().cpu().numpy()

    return run
