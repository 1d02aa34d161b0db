"""sparsify: a compiler for sparse language models.

program = sparsify.trace(model)
program = sparsify.parse("insert-masks | ...").run(program, sparsify.Context(data=...))
sparsify.export(program, "out/", to=["onnx"])

Names are imported when they are first used: `import sparsify` alone loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import passes as passes
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
    from sparsify.recipes.catalogue import RECIPES as RECIPES
    from sparsify.recipes.catalogue import recipe as recipe
    from sparsify.runtime.generate import Generator as Generator
    from sparsify.runtime.generate import load_onnx as load_onnx
    from sparsify.runtime.library_beside import add_kernels as add_kernels
    from sparsify.runtime.library_beside import remove_kernels as remove_kernels
    from sparsify.runtime.session import onnxruntime_session as onnxruntime_session
    from sparsify.train.program_model import ProgramModel as ProgramModel

# Where each name above comes from: `module`, or `module:name` where it has another one there.
_HOMES = {
    "Context": "sparsify.engine.contract",
    "Cost": "sparsify.describe.cost",
    "DomainData": "sparsify.data.domains",
    "Feature": "sparsify.ir.features.feature",
    "Fusion": "sparsify.fusion",
    "Generator": "sparsify.runtime.generate",
    "Op": "sparsify.ir.ops.op",
    "Pipeline": "sparsify.engine.pipeline",
    "Program": "sparsify.ir.program",
    "ProgramModel": "sparsify.train.program_model",
    "RECIPES": "sparsify.recipes.catalogue",
    "Report": "sparsify.engine.report",
    "SparsifyError": "sparsify.errors",
    "add_kernels": "sparsify.runtime.library_beside",
    "cost": "sparsify.describe.cost",
    "export": "sparsify.engine.export",
    "fuse": "sparsify.fusion",
    "load": "sparsify.ir.storage.folder",
    "load_data": "sparsify.data.load",
    "load_model": "sparsify.pretrained.load",
    "load_onnx": "sparsify.runtime.generate",
    "onnxruntime_session": "sparsify.runtime.session",
    "parse": "sparsify.engine.pipeline",
    "recipe": "sparsify.recipes.catalogue",
    "register_feature": "sparsify.ir.features.catalogue:register",
    "register_op": "sparsify.ir.ops.registry:register",
    "remove_kernels": "sparsify.runtime.library_beside",
    "save": "sparsify.ir.storage.folder",
    "trace": "sparsify.ir.trace.trace",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("sparsify.version").installed()
    if name == "passes":
        return import_module("passes")
    if name not in _HOMES:
        raise AttributeError(f"module 'sparsify' has no attribute '{name}'")
    home, _, there = _HOMES[name].partition(":")
    value = globals()[name] = getattr(import_module(home), there or name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "__version__", "passes"})
