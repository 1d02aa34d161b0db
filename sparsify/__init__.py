"""sparsify: a compiler for sparse language models.

program = sparsify.trace(model)
program = sparsify.parse("insert-masks | ...").run(program, sparsify.Context(data=...))
sparsify.export(program, "out/", to=["onnx"])
"""

from sparsify.data.domains import DomainData as DomainData
from sparsify.data.load import load_data as load_data
from sparsify.describe.cost import Cost as Cost
from sparsify.describe.cost import cost as cost
from sparsify.engine.contract import Context as Context
from sparsify.engine.export import export as export
from sparsify.engine.pipeline import Pipeline as Pipeline
from sparsify.engine.pipeline import parse as parse
from sparsify.engine.report import Report as Report
from sparsify.errors import SparsifyError as SparsifyError
from sparsify.fusion import Fusion as Fusion
from sparsify.fusion import fuse as fuse
from sparsify.ir.features.catalogue import register as register_feature  # noqa: F401
from sparsify.ir.features.feature import Feature as Feature
from sparsify.ir.ops.op import Op as Op
from sparsify.ir.ops.registry import register as register_op  # noqa: F401
from sparsify.ir.program import Program as Program
from sparsify.ir.storage.folder import load as load
from sparsify.ir.storage.folder import save as save
from sparsify.ir.trace.trace import trace as trace
from sparsify.pretrained.load import load_model as load_model
from sparsify.recipes import RECIPES as RECIPES
from sparsify.recipes import recipe as recipe
from sparsify.runtime.generate import Generator as Generator
from sparsify.runtime.generate import load_onnx as load_onnx
from sparsify.runtime.library_beside import add_kernels as add_kernels
from sparsify.runtime.library_beside import remove_kernels as remove_kernels
from sparsify.runtime.session import onnxruntime_session as onnxruntime_session
from sparsify.train.program_model import ProgramModel as ProgramModel
