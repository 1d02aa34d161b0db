"""onnx-decode: `model.onnx` with a key/value cache, one graph for the prompt and for each token after it.

    input_ids, attention_mask, position_ids, past_key_values.N.key, past_key_values.N.value
    ->  logits, present.N.key, present.N.value

Names and shapes are those that Optimum writes. The cache of a layer has the heads that are left in it.
The files beside the model let onnxruntime-genai and Optimum open the folder, each where it can. An encoder
and a decoder become two files, each with its own weights:

    encoder.onnx    its inputs  ->  cross_key_values.N.key, cross_key_values.N.value        once a text
    model.onnx      decoder_input_ids, past_key_values.*, cross_key_values.*, a mask of the encoder's
                    ->  logits, present.*
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import onnx_ir as ir
import torch
from torch import Tensor

from exporters.beside.genai import write_cached
from exporters.beside.transformers_files import write_about, write_beside, write_config
from exporters.onnx import FILE, Onnx, feeds_of
from exporters.onnx_graph.attention import fuse_attention
from sparsify.engine.contract import Reader
from sparsify.errors import ExportError, TraceError
from sparsify.ir.decode.caches import DECODER_IDS
from sparsify.ir.decode.encoder import crosses, parted
from sparsify.ir.decode.variant import check_decoder, decoder
from sparsify.ir.facts.admission import admission_of_program, most_tokens
from sparsify.ir.facts.causal import masks_bar_future, masks_bar_past
from sparsify.ir.features.prefix import tokens_before
from sparsify.ir.program import Program
from sparsify.runtime.encoder import ENCODER
from sparsify.runtime.session import UNPADDED

# Tokens that are enough to meet a window where a model does not say how many it takes.
_LONG = 1 << 17


@dataclass(frozen=True)
class OnnxDecode(Onnx):
    """Write the decode variant; `opset` as for `onnx`.

    `attention=fused` writes ONNX Runtime's own node where masks and shapes let it, which is the faster
    one, but takes several tokens behind a past for one sequence at a time only; `plain` writes standard
    operators.
    """

    name: ClassVar[str] = "onnx-decode"
    attention: Literal["fused", "plain"] = "fused"

    def check(self, program: Program) -> None:
        """Refuse what `onnx` refuses, and a model that does not generate."""
        super().check(program)
        try:
            check_decoder(program)
        except TraceError as error:
            raise ExportError(f"{error}; export to onnx") from error

    def write(self, program: Program, folder: Path) -> None:
        """Write the model, or the encoder and the decoder of one, and the files beside it."""
        if not crosses(program):
            super().write(program, folder)
            return
        for part, path in zip(parted(program), self.files(program, folder), strict=True):
            self.write_model(part, path)
        self.write_settings(program, folder)

    def write_settings(self, program: Program, folder: Path) -> None:
        """Write `config.json` and `genai_config.json`, as far as each can say the caches, and the rest."""
        config, notes = write_cached(program, folder, FILE)
        if _is_unpadded(program):
            notes.append(
                "the sequences of a batch must be of one length: attention sees a window of places, and "
                "padding would stand in it, between the prompt and the text"
            )
        write_config(config, program, folder)
        write_beside(program, folder)
        write_about(program, folder, self.name, notes, most_tokens(program))

    def usage(self, program: Program) -> str:
        """A few tokens more than a prompt has, or from what an encoder is given."""
        opened = 'import sparsify\n\nmodel = sparsify.load_onnx(".")\n'
        if "input_ids" in program.sample:
            prompt = '"Once"' if program.tokenizer is not None else "[[1, 2, 3]]"
            return f"{opened}ids = model.generate({prompt}, tokens=16).ids"
        feeds = [
            f'    "{name}": {code},' for name, code in feeds_of(program) if name != DECODER_IDS
        ]
        given = "\n".join(["given = {", *feeds, "}"])
        return f"import numpy as np\n{opened}{given}\nids = model.generate(given, tokens=16).ids"

    def variant(self, program: Program) -> Program:
        """The program with caches in and out; ExportError where there can be none."""
        try:
            return decoder(program)
        except TraceError as error:
            raise ExportError(f"{error}; export to onnx") from error

    def finish(self, model: ir.Model, program: Program) -> None:
        """Say what batches it takes; fuse attention where wanted, if masks bar what comes after a token."""
        if _is_unpadded(program):
            model.metadata_props[UNPADDED] = "true"
        if self.attention == "fused" and masks_bar_future(program):
            fuse_attention(model)

    def read_back(self, program: Program, folder: Path) -> Reader:
        """As for `onnx`, one sequence at a time: all that fused attention takes behind a past."""
        reader = super().read_back(program, folder)
        if crosses(program):
            return reader

        def run(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            rows = [
                reader({name: value[row : row + 1] for name, value in inputs.items()})
                for row in range(len(inputs["input_ids"]))
            ]
            return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))

        return run

    def files(self, program: Program, folder: Path) -> list[Path]:
        """The model's file, behind that of its encoder where it has one."""
        return [folder / ENCODER, folder / FILE] if crosses(program) else [folder / FILE]


def _is_unpadded(variant: Program) -> bool:
    """Whether padding would stand between a prompt and its text, in a window that counts places."""
    if not tokens_before(variant):
        return False
    return masks_bar_past(variant, admission_of_program(variant).positions or _LONG)
