"""OpenVINO on the CPU."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .base import Backend, Graph, Runner

# fp32 whatever the CPU could do in less: answers are those of the model that was evaluated. Not pinned to cores: other processes
# of the machine may be.
OPTIONS = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}


class OpenVino(Backend):
    """Its runtime alone, which reads the graph by itself: the converter, which would report its use, is never called."""

    name = "openvino"
    module = "openvino"
    package = "openvino"

    def open(self, graph: Graph, threads: int) -> Runner:
        # OpenVINO gives the thread that loads it a stack for signals, and frees that with itself: a signal to that thread would then
        # end the process. So a thread that ends loads it.
        with ThreadPoolExecutor(1) as loader:
            return loader.submit(_runner, graph, threads).result()


def _runner(graph: Graph, threads: int) -> Runner:
    import openvino

    core = openvino.Core()
    options = OPTIONS | {"INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(core.read_model(graph.path), "CPU", options).create_infer_request()

    def run(inputs: np.ndarray) -> np.ndarray:
        request.infer([inputs])
        return np.array(request.get_output_tensor().data)  # a copy: the next run writes over it

    return run
