"""genai: what onnxruntime-genai and Optimum must be told of a decode graph, and whether they can run it.

Both make the empty caches of the first step themselves, by sizes that stand in a config.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from exporters.beside.transformers_files import generation_of, slow_notes
from sparsify.disk.files import write_json
from sparsify.ir.decode.caches import CACHES, carries_states, past_inputs
from sparsify.ir.decode.encoder import crosses
from sparsify.ir.decode.variant import check_decoder
from sparsify.ir.program import Program
from sparsify.pretrained.companions import ids_of
from sparsify.pretrained.load import config_of
from sparsify.pretrained.rope import switch_length

FILE = "genai_config.json"
# Of generation_config.json; onnxruntime-genai refuses a key it does not know.
_SEARCH = (
    "do_sample",
    "min_length",
    "no_repeat_ngram_size",
    "num_beams",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
)
_LENGTHS = ("max_position_embeddings", "max_seq_len", "seq_length")

Cache = tuple[int, int, int]


def caches(program: Program) -> list[Cache]:
    """KV heads, key size and value size of each layer of a decode variant that carries nothing else."""
    shapes = [tuple(program.sample[name].shape) for name in past_inputs(program)]
    pairs = zip(shapes[::2], shapes[1::2], strict=True)
    return [(key[1], key[3], value[3]) for key, value in pairs]


def refusal(found: list[Cache], config: PreTrainedConfig) -> str | None:
    """Why onnxruntime-genai cannot run a graph; None when it can.

    It reads the heads of each layer off the graph, and gives keys and values the same size.
    """
    for layer, (_, key, value) in enumerate(found):
        if key != value:
            return f"its layer {layer} has keys of size {key} and values of size {value}"
    if context_length(config) is None:
        return "its config names no greatest length"
    return None


def context_length(config: PreTrainedConfig) -> int | None:
    """The most tokens that a model takes, when its config says so."""
    said = (getattr(config, name, None) for name in _LENGTHS)
    return next((length for length in said if isinstance(length, int) and length > 0), None)


def genai_config(
    program: Program, config: PreTrainedConfig, generation: Mapping[str, Any], file: str
) -> dict[str, Any]:
    """The content of `genai_config.json` for a decode variant written to `file`.

    Past and present share no buffer: one that lasts would have to hold the context's full length at once.
    """
    found = caches(program)
    heads, size, _ = found[0]
    length = _usable_length(config)
    inputs = {name: name for name in program.sample if name not in past_inputs(program)}
    past = {f"past_{kind}_names": f"past_key_values.%d.{kind}" for kind in CACHES}
    present = {f"present_{kind}_names": f"present.%d.{kind}" for kind in CACHES}
    search = {key: generation[key] for key in _SEARCH if generation.get(key) is not None}
    return {
        "model": {
            # A decoder like any other: the inputs say which.
            "type": "decoder",
            **_ids(program, config, generation),
            "context_length": length,
            "vocab_size": program.run()[0].shape[-1],
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": file,
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": heads,
                "head_size": size,
                "num_hidden_layers": len(found),
                "inputs": {**inputs, **past},
                "outputs": {"logits": "logits", **present},
            },
        },
        "search": {"max_length": length, **search, "past_present_share_buffer": False},
    }


def _usable_length(config: PreTrainedConfig) -> int | None:
    """The most tokens for which kept keys stay right: where rotary angles switch, no more than before."""
    whole, switch = context_length(config), switch_length(config.to_dict())
    return whole if switch is None or whole is None else min(whole, switch)


def _switch_notes(config: PreTrainedConfig) -> list[str]:
    whole, switch = context_length(config), switch_length(config.to_dict())
    if switch is None or (whole is not None and whole <= switch):
        return []
    return [
        f"beyond {switch} tokens the model turns all positions by other angles, the earlier ones too; "
        "'sparsify-fx generate' then reads the text anew, tools that keep their caches go wrong, so that "
        f"{FILE} allows {switch} tokens"
    ]


def _ids(
    program: Program, config: PreTrainedConfig, generation: Mapping[str, Any]
) -> dict[str, Any]:
    """The ids that begin, end (every one) and fill a sequence; padding by the end if nothing is named."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    said = {name: generation.get(name, getattr(config, name, None)) for name in names}
    named = (said["eos_token_id"], getattr(config, "eos_token_id", None))
    ends = list(ids_of(*named, getattr(program.tokenizer, "eos_token_id", None)))
    said["eos_token_id"] = (ends[0] if len(ends) == 1 else ends) if ends else None
    if said["pad_token_id"] is None and ends:
        said["pad_token_id"] = ends[0]
    return {name: value for name, value in said.items() if value is not None}


def write_cached(program: Program, folder: Path, file: str) -> tuple[PreTrainedConfig, list[str]]:
    """Write `genai_config.json` where it holds; the config that says the caches, and what neither can say."""
    config = config_of(check_decoder(program), program.source.config)
    inner = config.get_text_config(decoder=True)
    notes = [*slow_notes(program), *_switch_notes(inner)]
    if carries_states(program):
        notes.append(
            "onnxruntime-genai and Optimum do not run this model, since its layers carry states that are no "
            f"keys or values: there is no {FILE}"
        )
        return config, notes
    if crosses(program):
        notes.append(
            "onnxruntime-genai and Optimum do not run this model, whose encoder gives the keys and values "
            f"that each layer of the decoder reads, not what these are made from: there is no {FILE}"
        )
        return config, notes
    found = caches(program)
    why = refusal(found, inner)
    if why is None:
        said = genai_config(program, inner, generation_of(program, config), file)
        write_json(folder / FILE, said)
    else:
        notes.append(f"onnxruntime-genai does not run this model, since {why}: there is no {FILE}")
    why = with_caches(inner, found)
    if why is not None:
        notes.append(f"Optimum does not run this model, since {why}")
    return config, notes


def with_caches(config: PreTrainedConfig, found: list[Cache]) -> str | None:
    """Make a config give the caches' shapes as Optimum reads them; why it cannot, or None.

    Optimum takes `num_key_value_heads`, or else `num_attention_heads`, and, for most models, the size
    `hidden_size // num_attention_heads`, whatever `head_dim` says: where heads are gone or of a size of their
    own, the number of query heads, or the width, must give way. The graph reads neither.
    """
    entries = config.to_dict()  # what others compute from them cannot be set
    config.num_hidden_layers = len(found)
    if len(entries.get("layer_types") or found) != len(found):
        config.layer_types = None
    if len({size for cache in found for size in cache[1:]}) > 1 or len(set(found)) > 1:
        return "its layers have caches of different shapes"
    heads, size, _ = found[0]
    if "head_dim" in entries:
        config.head_dim = size
    if "num_key_value_heads" in entries:
        config.num_key_value_heads = heads
        heads = max(1, config.hidden_size // size)
    config.num_attention_heads = heads
    if config.hidden_size // heads != size or config.hidden_size % heads:
        config.hidden_size = heads * size
    return None
