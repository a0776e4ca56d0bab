"""What 8-bit graphs would gain and lose: python -m bench.int8 [--tower starter]

Both towers as the server exports them, quantized by ONNX Runtime's own tools: convolutions with ranges that are calibrated on images,
matrix products with ranges that are found while they run. Printed of each: processor milliseconds of one item at batches of 1 and 8, in one
thread, and the least cosine to the fp32 graph's embeddings. The server would take one that is at least 1.3 times as fast at a cosine
of at least .999. The last line is JSON. Takes two minutes.
"""

import argparse
import base64
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .serving import towers

GAIN, COSINE = 1.3, 0.999
ROUNDS = 15
Run = Callable[[np.ndarray], np.ndarray]


def session(path: Path) -> Run:
    from clipft_tasks.model.backends.base import Graph
    from clipft_tasks.model.backends.onnx import OnnxRuntime

    return OnnxRuntime().open(Graph(path, "image"), 1)


def quantized(path: Path, out: Path, rows: Sequence[np.ndarray]) -> None:
    """Write a graph with 8-bit weights and activations.

    Args:
        rows: inputs to calibrate convolutions on, each of one row; none: the graph has none.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]  # it has no types
        left: Iterator[np.ndarray] = iter(rows)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({"inputs": row} for row in self.left), None)

    if rows:
        quantize_static(
            str(path), str(out), Rows(), per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8
        )
    else:
        quantize_dynamic(
            str(path), str(out), per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"]
        )


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.asarray((ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1))


def cost(run: Run, inputs: np.ndarray) -> float:
    """Processor milliseconds of one row."""
    run(inputs)
    began = time.process_time()
    for _ in range(ROUNDS):
        run(inputs)
    return (time.process_time() - began) / ROUNDS / len(inputs) * 1000


def compared(plain: Run, small: Run, samples: Sequence[np.ndarray], batch: np.ndarray) -> dict[str, float | bool]:
    found: dict[str, float | bool] = {"cosine": float(min(cosines(plain(some), small(some)).min() for some in samples))}
    for size in (1, 8):
        found[f"fp32 batch {size} ms"], found[f"int8 batch {size} ms"] = cost(plain, batch[:size]), cost(small, batch[:size])
    gain = [found[f"fp32 batch {size} ms"] / found[f"int8 batch {size} ms"] for size in (1, 8)]
    found["gain"] = float(np.sqrt(gain[0] * gain[1]))
    return found | {"is_taken": found["gain"] >= GAIN and found["cosine"] >= COSINE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", type=Path, default=Path(".clipft/bench-serving"), help="homes, which stay")
    parser.add_argument("--tower", default="starter", help="or ViT-B-32, of random weights")
    asked = parser.parse_args()
    home = asked.place.resolve() / asked.tower
    package = towers.write_home(home, asked.tower)
    os.environ["CLIPFT_HOME"] = str(home)

    import torch

    from clipft_tasks.data.images import open_image, square
    from clipft_tasks.model import build
    from clipft_tasks.model.backends import choice, export
    from clipft_tasks.model.backends.base import TOWERS

    torch.set_num_threads(1)
    clip = build.from_folder(package, source=asked.tower)
    photos = [open_image(base64.b64decode(one), gray_bits=8).rgb for one in towers.images()[:24]]
    images = np.stack([square(photo, clip.side, clip.aspect) for photo in photos])
    out: dict[str, dict[str, float | bool]] = {}
    for kind in TOWERS:
        graph, calibrating = export.graph_of(clip, kind, clip.side), []
        samples = choice.samples_of(clip, kind, clip.side, images[16:], towers.texts(True))
        batch = images[:8] if kind == "image" else clip.tokenize(towers.texts(True)).numpy()
        if kind == "image" and asked.tower == "starter":
            calibrating = [rows[None] for some in (*samples, images[:16]) for rows in some]
        with tempfile.TemporaryDirectory() as folder:
            small = Path(folder) / "int8.onnx"
            quantized(graph.path, small, calibrating)
            out[kind] = compared(session(graph.path), session(small), samples, batch)
        print(kind, ", ".join(f"{name} {value:.4g}" for name, value in out[kind].items()), flush=True)
    print(json.dumps({"tower": asked.tower} | out))


if __name__ == "__main__":
    main()
