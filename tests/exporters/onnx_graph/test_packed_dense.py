"""Dense weights in blocks are contrib operators of ONNX Runtime, and give what the program gives."""

import onnx
import pytest
import torch
from torch import nn

from exporters.onnx import FILE, Onnx
from sparsify.engine.export import write_checked
from sparsify.engine.pipeline import parse
from sparsify.ir.trace.trace import trace
from sparsify.tensors.precision import relative_difference

COLUMNS = 70  # no whole number of blocks
ROUND = "insert-quantizers{values=%s group=%d %s} | choose-scales | pack-dense"


class Tied(nn.Module):
    """Ids `[batch, length]` -> logits by the same table, through linears with a bias and without."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(40, COLUMNS), nn.Linear(COLUMNS, 40, bias=False)
        self.head.weight = self.embed.weight
        self.up, self.down = nn.Linear(COLUMNS, 96), nn.Linear(96, COLUMNS, bias=False)

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(x + self.down(torch.relu(self.up(x))))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (2, 5))
    program = trace(Tied().eval(), {"ids": ids}, {"ids": {0: "batch", 1: "length"}})
    parse(f"{ROUND % ('int8', 64, 'targets=up')} | {ROUND % ('int4', 32, 'ends=true')}").run(
        program
    )
    return program, write_checked(Onnx(), program, tmp_path_factory.mktemp("blocks"))


def test_the_file_gives_what_the_program_gives(exported):
    program, folder = exported
    for shape in ((1, 1), (3, 9)):
        ids = torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(3))
        (wanted,), (found,) = (
            program.run({"ids": ids}),
            Onnx().read_back(program, folder)({"ids": ids}),
        )
        # An input whose last digit differs may be rounded to the next code.
        assert relative_difference(wanted, found) <= 5e-3


def test_what_stands_in_the_file(exported):
    model = onnx.load(exported[1] / FILE)
    nodes = {
        node.input[1] if node.op_type == "MatMulNBits" else node.input[0]: node
        for node in model.graph.node
        if node.domain == "com.microsoft"
    }
    assert {o.domain for o in model.opset_import} == {"", "com.microsoft"}
    assert set(nodes) == {"up.weight_blocks", "down.weight_blocks", "head.weight_blocks"}
    weights = {i.name: i for i in model.graph.initializer}
    assert list(weights["head.weight_blocks"].dims) == [40, 3, 16]
    assert list(weights["up.weight_blocks"].dims) == [96, 2, 64]
    assert sum(i.data_type == onnx.TensorProto.UINT8 for i in model.graph.initializer) == 3
    said = {a.name: onnx.helper.get_attribute_value(a) for a in nodes["up.weight_blocks"].attribute}
    assert said == {"K": COLUMNS, "N": 96, "bits": 8, "block_size": 64, "accuracy_level": 4}
    assert list(nodes["up.weight_blocks"].input)[5:] == ["up.bias"]
