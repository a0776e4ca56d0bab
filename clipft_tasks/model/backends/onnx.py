"""ONNX Runtime on the CPU."""

from collections.abc import Sequence

import numpy as np

from .base import Backend, Graph, Runner


class OnnxRuntime(Backend):
    name = "onnx"
    module = "onnxruntime"
    package = "onnxruntime"

    def open(self, graph: Graph, threads: int) -> Runner:
        return _runner(graph, threads)

    def open_lanes(self, graph: Graph, threads: int, lanes: int) -> Sequence[Runner]:
        return [_runner(graph, max(1, threads // lanes))] * lanes  # one session, which any number of threads may run


def _runner(graph: Graph, threads: int) -> Runner:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # errors; warnings about a graph help nobody who serves it
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its threads leave the cores to decoding
    session = onnxruntime.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(inputs: np.ndarray) -> np.ndarray:
        out: np.ndarray = session.run(None, {name: inputs})[0]
        return out

    return run
