"""One library file on old and new versions of ONNX Runtime, each in an environment of its own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from sparsify.tensors.packing.nm_linear import nm_linear_reference
from sparsify.tensors.packing.packed import Layout
from tests.environments import environment, run_in, skip_unless_asked

pytestmark = pytest.mark.versions

LAYOUTS = [Layout(2, 4, 96, 40), Layout(2, 8, 70, 40, "int8", 32), Layout(2, 4, 96, 40, "int4", 96)]
# Wheels of the years before NumPy 2 need the older one.
VERSIONS = {
    "1.17.3": ["onnxruntime==1.17.3", "numpy<2"],
    "1.18.1": ["onnxruntime==1.18.1", "numpy<2"],
    "1.22.1": ["onnxruntime==1.22.1"],
    "newest": ["onnxruntime"],
}
PROGRAM = """
import sys, numpy, onnxruntime
library, *cases = sys.argv[1:]
for case in cases:
    given = numpy.load(case + ".npz")
    for threads in (1, 2):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.register_custom_ops_library(library)
        session = onnxruntime.InferenceSession(case + ".onnx", options, providers=["CPUExecutionProvider"])
        for tokens in (1, 4, 64):
            x, y = given[f"x{tokens}"], given[f"y{tokens}"]
            found, = session.run(None, {"X": x})
            assert found.shape == y.shape and abs(found - y).max() < 1e-4, (case, tokens)
    try:
        session.run(None, {"X": x[:, 1:]})
    except Exception as error:
        assert "the last dimension of X is" in str(error)
    else:
        raise AssertionError("a wrong width was accepted")
print(onnxruntime.__version__, "correct")
"""


def zeros(layout: Layout) -> onnx.FunctionProto:
    """The operator as a function of the model, and wrong."""
    nothing = np.zeros((layout.in_features, layout.out_features), np.float32)
    body = [
        helper.make_node("Constant", [], ["W0"], value=numpy_helper.from_array(nothing)),
        helper.make_node("MatMul", ["X", "W0"], ["Y"]),
    ]
    attributes = ["n", "m", "in_features", "out_features", "group", "layout", "values"]
    opsets = [helper.make_opsetid("", 17)]
    names = ("sparsify", "NMLinear", ["X", "W", "B"], ["Y"])
    return helper.make_function(*names, body, opsets, attributes=attributes)


@pytest.fixture(scope="session", autouse=True)
def asked(request: pytest.FixtureRequest) -> None:
    skip_unless_asked(request, "versions")


@pytest.fixture(scope="session")
def cases(
    draw: Callable[[Layout, int], Tensor],
    one_node: Callable[..., onnx.ModelProto],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Path]:
    """Models with activations and the results in plain torch.

    Each also holds a function of the name of the operator that gives zeros: the library must win.
    """
    folder = tmp_path_factory.mktemp("cases")
    paths = []
    for number, layout in enumerate(LAYOUTS):
        rng = np.random.default_rng(number)
        packed, bias = draw(layout, number), rng.standard_normal(40).astype(np.float32)
        path = folder / str(number)
        model = one_node(layout, packed.numpy(), bias)
        model.functions.append(zeros(layout))
        onnx.save(model, f"{path}.onnx")
        given = {}
        for tokens in (1, 4, 64):
            x = rng.standard_normal((tokens, layout.in_features)).astype(np.float32)
            y = nm_linear_reference(
                torch.from_numpy(x), packed, torch.from_numpy(bias), layout
            ).numpy()
            given |= {f"x{tokens}": x, f"y{tokens}": y}
        np.savez(f"{path}.npz", **given)
        paths.append(path)
    return paths


@pytest.mark.parametrize("version", VERSIONS)
def test_right_results(version: str, library: Path, cases: list[Path], tmp_path: Path) -> None:
    run = run_in(environment(tmp_path, *VERSIONS[version]), "-c", PROGRAM, library, *cases)
    assert run.returncode == 0, run.stderr
    found, word = run.stdout.split()
    assert word == "correct"
    assert version in ("newest", found)


def test_a_version_that_is_too_old(library: Path, cases: list[Path], tmp_path: Path) -> None:
    python = environment(tmp_path, "onnxruntime==1.16.3", "numpy<2")
    run = run_in(python, "-c", PROGRAM, library, *cases)
    assert run.returncode == 1
    assert "sparsify kernels need ONNX Runtime 1.17 or newer, this is 1.16.3" in run.stderr
