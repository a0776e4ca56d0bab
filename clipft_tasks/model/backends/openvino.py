"""OpenVINO on the CPU."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from .base import Backend, Graph, Runner

# fp32 whatever the CPU could do in less: answers are those of the model that was evaluated. Not pinned to cores: other processes
# of the machine may be.
OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}


class OpenVino(Backend):
    """Its runtime alone, which reads the graph by itself: the converter, which would report its use, is never called."""

    name = "openvino"
    module = "openvino"
    package = "openvino"

    def open(self, graph: Graph, threads: int) -> Runner:
        return self.open_lanes(graph, threads, 1)[0]

    def open_lanes(self, graph: Graph, threads: int, lanes: int) -> Sequence[Runner]:
        # OpenVINO gives the thread that loads it a stack for signals, and frees that with itself: a signal to that thread would then
        # end the process. So a thread that ends loads it.
        with ThreadPoolExecutor(1) as loader:
            return loader.submit(_runners, graph, threads, lanes).result()


def _runners(graph: Graph, threads: int, lanes: int) -> Sequence[Runner]:
    import openvino

    core = openvino.Core()
    shared = {"PERFORMANCE_HINT": "LATENCY"} if lanes == 1 else {"NUM_STREAMS": lanes}
    compiled = core.compile_model(core.read_model(graph.path), "CPU", OPTIONS | shared | {"INFERENCE_NUM_THREADS": threads})

    def run(request: openvino.InferRequest, inputs: np.ndarray) -> np.ndarray:
        request.infer([inputs])
        return np.array(request.get_output_tensor().data)  # a copy: the next run writes over it

    return [partial(run, compiled.create_infer_request()) for _ in range(lanes)]
