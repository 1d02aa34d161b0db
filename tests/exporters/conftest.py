"""Small random models of every supported family, traced once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from sparsify.ir.axes.groups import groups, heads
from sparsify.ir.axes.shrink.keep import Keep
from sparsify.ir.axes.shrink.shrink import shrink
from sparsify.ir.axes.walk import analyse
from sparsify.ir.program import Program
from sparsify.ir.trace.trace import trace

DECODER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 200,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 200,
    "max_position_embeddings": 64,
}
GPT2: dict[str, Any] = {
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 200,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
OPT: dict[str, Any] = {
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 200,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
# Family -> model class, config class, sizes.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", DECODER),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**DECODER, "head_dim": 16}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "opt": ("OPTForCausalLM", "OPTConfig", OPT),
    "bert": ("BertModel", "BertConfig", BERT),
    "bert_classifier": ("BertForSequenceClassification", "BertConfig", {**BERT, "num_labels": 3}),
}
Programs = Callable[[str], Program]


def build(family: str) -> PreTrainedModel:
    model_class, config_class, sizes = FAMILIES[family]
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, model_class)(
        getattr(transformers, config_class)(**sizes)
    )
    with torch.no_grad():  # biases and norms that would be missed if they got lost
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def programs() -> Programs:
    traced: dict[str, Program] = {}

    def fresh(name: str) -> Program:
        if name not in traced:
            traced[name] = trace(build(name))
        program = traced[name].clone()
        program.log.append("said{so=true}")
        return program

    return fresh


@pytest.fixture(scope="session")
def pruned(programs: Programs) -> Callable[..., Program]:
    """A family's program with the channels or heads of every layer halved, or one layer's only."""

    def cut(name: str, of: str, layers: str = "all") -> Program:
        program = programs(name)
        analysis, keep = analyse(program), Keep()
        if of == "channels":
            found = [g for g in groups(analysis) if g.kind == "channels" and g.prunable]
            found = [g for g in found if any(".0." in m.path or ".1." in m.path for m in g.members)]
            for group in found[: len(found) if layers == "all" else 1]:
                keep.group(group, range(0, group.size, 2))
        else:
            for attention in heads(analysis):
                keep.heads(attention, range(attention.size // 2))
        shrink(program, keep)
        return program

    return cut


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"<unk>": 0, "one": 1, "two": 2}, unk_token="<unk>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
