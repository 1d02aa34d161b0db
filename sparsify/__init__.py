"""sparsify: a compiler for sparse language models.

program = sparsify.trace(model)
program = sparsify.parse("insert-masks | ...").run(program, sparsify.Context(data=...))
sparsify.export(program, "out/", to=["onnx"])
"""

from sparsify.engine.contract import Context as Context
from sparsify.engine.export import export as export
from sparsify.engine.pipeline import Pipeline as Pipeline
from sparsify.engine.pipeline import parse as parse
from sparsify.engine.report import Report as Report
from sparsify.errors import SparsifyError as SparsifyError
from sparsify.generate import Generator as Generator
from sparsify.generate import load_onnx as load_onnx
from sparsify.ir.pretrained import load_model as load_model
from sparsify.ir.program import Program as Program
from sparsify.ir.store import load as load
from sparsify.ir.store import save as save
from sparsify.ir.trace import trace as trace
from sparsify.kernels import add_kernels as add_kernels
from sparsify.kernels import remove_kernels as remove_kernels
from sparsify.recipes import RECIPES as RECIPES
from sparsify.recipes import recipe as recipe
from sparsify.session import onnxruntime_session as onnxruntime_session
from sparsify.train.data import load_data as load_data
from sparsify.train.wrapped import ProgramModel as ProgramModel
