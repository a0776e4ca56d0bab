"""Embeddings of texts that were asked before."""

import numpy as np

from serving.inference.vector_memory import LONGEST, VectorMemory


def test_the_least_recently_used_go_first_and_no_more_bytes_are_kept_than_allowed():
    memory = VectorMemory(3 * 4 * 8)  # three vectors of eight numbers
    memory.keep({name: np.full(8, n, np.float32) for n, name in enumerate("abc")})
    assert memory.found(["a", "z"]).keys() == {"a"}
    memory.keep({"d": np.full(8, 3, np.float32)})
    assert memory.found("abcd").keys() == {"a", "c", "d"} and len(memory) == 3
    assert memory.found(["d"])["d"].tolist() == [3.0] * 8


def test_what_is_kept_is_no_view_of_a_batch_and_long_texts_are_not_kept():
    memory, batch = VectorMemory(2**20), np.zeros((4, 8), np.float32)
    memory.keep({"a": batch[0], "b" * (LONGEST + 1): batch[1]})
    batch[:] = 1
    assert memory.found(["a", "b" * (LONGEST + 1)]).keys() == {"a"} and memory.found(["a"])["a"].sum() == 0
