"""Damaged files: a changed byte gives an error of ONNX Runtime or other numbers, never a dead process."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsify.tensors.packing.packed import Layout

Session = Callable[..., onnxruntime.InferenceSession]
Model = Callable[..., onnx.ModelProto]
Draw = Callable[[Layout, int], Tensor]
LAYOUTS = [
    Layout(3, 8, 40, 12),
    Layout(2, 4, 40, 12, "int8", 32),
    Layout(5, 8, 40, 12, "int4", 96),
]
FLIPS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@settings(max_examples=60, deadline=None)
@given(flips=FLIPS)
def test_changed_bytes_of_a_weight(
    layout: Layout,
    flips: list[tuple[float, int]],
    session: Session,
    one_node: Model,
    draw: Draw,
) -> None:
    """What cannot be seen as damage is computed with: an index is then another, a value as well."""
    w = draw(layout, 1).numpy().copy()
    for where, change in flips:
        w[int(where * len(w))] ^= np.uint8(change)
    model, said = one_node(layout, w), ""
    try:
        made = session(model)
    except Exception as error:
        said = str(error)
    if said:
        assert re.search("NMLinear 'fc1' .*: the packed weight is damaged", said)
        return
    for tokens in (1, 20):
        (y,) = made.run(None, {"X": np.ones((tokens, 40), np.float32)})
        assert y.shape == (tokens, 12)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_weight_cut_short_anywhere(
    layout: Layout, session: Session, one_node: Model, draw: Draw
) -> None:
    w = draw(layout, 1).numpy()
    for length in range(0, len(w), 97):
        with pytest.raises(Exception, match=f"has {length} bytes, these sizes need {len(w)}"):
            session(one_node(layout, w[:length]))


PROGRAM = """
import random, sys, numpy, onnxruntime
library, model, seed, count = sys.argv[1:]
whole = open(model, "rb").read()
rng = random.Random(int(seed))
x = {"X": numpy.ones((3, 40), numpy.float32)}
refused = 0
for _ in range(int(count)):
    text = bytearray(whole)
    for _ in range(rng.choice([1, 1, 2, 5])):
        text[rng.randrange(len(text))] = rng.randrange(256)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.register_custom_ops_library(library)
    try:
        onnxruntime.InferenceSession(bytes(text), options, providers=["CPUExecutionProvider"]).run(None, x)
    except Exception as error:
        refused += 1
print("alive", refused)
"""


def test_changed_bytes_of_a_model(
    library: Path, one_node: Model, draw: Draw, tmp_path: Path
) -> None:
    layout = Layout(2, 4, 40, 3, "int4", 32)
    model = one_node(layout, draw(layout, 1).numpy()).SerializeToString()
    small = tmp_path / "small.onnx"
    small.write_bytes(model)
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, library, small, "3", "600"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    word, refused = run.stdout.splitlines()[-1].split()  # the runtime prints lines of its own
    assert word == "alive"
    assert 0 < int(refused) < 600
