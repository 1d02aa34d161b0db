"""Mutants of a saved program: its document as a tree, its tensors as files, each by a seed."""

import json
import random
from pathlib import Path

from sparsify.ir.ops.allowed import names

DOCUMENT, TENSORS, SAMPLE = "program.json", "tensors.safetensors", "sample.safetensors"
_END = 2**63 - 1
_OPS = sorted(names())
_FOREIGN = [
    "os:system", "posix:system", "operator:call", "operator:setitem", "operator:pow", "operator:lshift",
    "operator:attrgetter", "operator:methodcaller", "math:factorial", "math:comb", "math:perm",
    "torch:load", "torch:save", "torch.load", "torch:compile", "aten.from_file.default",
    "aten.set_.source_Storage", "aten.resize_.default", "aten.copy_.default", "aten.rand.default",
    "aten.as_strided.default", "aten._print.default", "prims.iota.default",
    "profiler._record_function_enter.default",
    "sparsify.probe", "sparsify.kept_neurons", "builtins:eval", "torch:sym_max", "operator:mul",
]  # fmt: skip
_NUMBERS = [
    0, 1, -1, 2, 3, 7, 64, 255, -2, 2**31, -(2**31), 2**40, 10**12, _END, -_END, 2**63, 2**64,
    10**30, 0.5, -0.0, 1e-45, 1e308, True, False,
]  # fmt: skip
_TAGS = [
    {"node": 0}, {"node": -1}, {"node": 10**9}, {"node": True}, {"node": "0"}, {"tuple": []},
    {"slice": [None, None, 0]}, {"slice": [1]}, {"dtype": "float16"}, {"dtype": "load"},
    {"dtype": "complex64"}, {"device": "meta"}, {"device": "cuda:99"}, {"device": "privateuseone"},
    {"layout": "sparse_coo"}, {"memory_format": "channels_last"}, {"float": "nan"}, {"float": "inf"},
    {"pickle": "x"}, {}, {"node": 1, "tuple": []},
]  # fmt: skip


def hostile(sentinel):
    """Texts that would write a file if they were ever run."""
    call = f'open({str(sentinel)!r}, "w")'
    return [
        f"x={call}", f"position_ids=__import__('os').system('touch {sentinel}')",
        f'training"), {call}, getattr(self, "training', f"weight or {call}", f"a.b\n    {call}\n    c",
        f"__import__('os').system('touch {sentinel}')", f"x: {call}", f"*args, y={call}", "lambda: 0",
        "self", "torch", "forward", "_parameters.x", "training", "__class__", "__dict__.update", "a..b",
        ".", "", "0", "class", "None", "inf", "getattr", "\x00", "\uff46orward", "x" * 600, "x" * 100_000,
        "../../etc/passwd", "config.json", "modules.json", "input_ids",
    ]  # fmt: skip


class Mutator:
    """Writes mutants of saved programs; the same seed makes the same mutant."""

    def __init__(self, bases, scratch, sentinel):
        self.bases = list(bases)
        self.texts = {base: (base / DOCUMENT).read_text(encoding="utf-8") for base in self.bases}
        self.files = {
            base: {name: (base / name).read_bytes() for name in (TENSORS, SAMPLE)}
            for base in self.bases
        }
        self.scratch, self.words = Path(scratch), hostile(sentinel)

    def write(self, seed):
        """The folder of a mutant, which takes the place of the one before."""
        draw = random.Random(seed)
        base = self.bases[seed % len(self.bases)]
        files = dict(self.files[base])
        text = self.texts[base]
        kind = draw.random()
        if kind < 0.80:
            text = self._document(draw, text)
        elif kind < 0.95:
            name = draw.choice([TENSORS, TENSORS, SAMPLE])
            text = self._document(draw, text, times=0)
            files[name] = _tensors(draw, files[name], self.words)
        else:
            text = _bytes(draw, text.encode()).decode("utf-8", "surrogateescape")
        self.scratch.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (self.scratch / name).write_bytes(value)
        (self.scratch / DOCUMENT).write_bytes(text.encode("utf-8", "surrogateescape"))
        return self.scratch

    def _document(self, draw, text, times=None):
        about = json.loads(text)
        if draw.random() < 0.9:
            del about["hashes"]
        for _ in range(draw.choice([1, 1, 1, 2, 3]) if times is None else times):
            self._change(draw, about)
        return json.dumps(about)

    def _change(self, draw, about):
        graph = about.get("graph")
        if draw.random() < 0.85 and isinstance(graph, list) and graph:
            node = draw.choice(graph)
            if isinstance(node, dict) and draw.random() < 0.35:
                return _change_node(draw, node, graph)
            if draw.random() < 0.06:
                return _reorder(draw, graph)
            about = node
        holder, key = _place(draw, about)
        if holder is not None:
            self._change_value(draw, holder, key)
        return None

    def _change_value(self, draw, holder, key):
        kind = draw.random()
        value = holder[key]
        if kind < 0.1:
            del holder[key]
        elif kind < 0.2 and isinstance(holder, dict):
            holder[draw.choice(self.words)] = holder.pop(key)
        elif kind < 0.3 and isinstance(value, list) and value:
            value.append(draw.choice(value))
        elif kind < 0.5 and isinstance(value, int | float):
            change = draw.choice([1, -1, 7, 1000])
            holder[key] = value + change if draw.random() < 0.7 else value * change
        else:
            holder[key] = self._value(draw)

    def _value(self, draw):
        pool = draw.choice(
            [_NUMBERS, _TAGS, self.words, _FOREIGN, [None, [], {}, [[]], [0] * 5000]]
        )
        value = draw.choice(pool)
        if draw.random() < 0.03:
            for _ in range(draw.choice([10, 40, 900])):
                value = [value]
        return json.loads(json.dumps(value))


def _place(draw, tree):
    """A holder somewhere in a tree, and the key of one of its values."""
    holder = key = None
    while isinstance(tree, dict | list) and tree:
        holder, key = tree, draw.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        tree = tree[key]
        if draw.random() < 0.25:
            break
    return holder, key


def _change_node(draw, node, graph):
    """A node with another op, other arguments, or another node among them."""
    kind = draw.random()
    if kind < 0.3:
        node["target"] = draw.choice(_OPS)
    elif kind < 0.45:
        node["target"] = draw.choice(_FOREIGN)
    elif kind < 0.7 and isinstance(node.get("args"), list):
        node["args"].insert(draw.randint(0, len(node["args"])), _argument(draw, graph))
    elif kind < 0.85 and isinstance(node.get("kwargs"), dict):
        node["kwargs"][draw.choice(["dim", "dtype", "alpha", "size", "x=1", "self"])] = _argument(
            draw, graph
        )
    else:
        other = draw.choice(graph)
        if isinstance(other, dict):
            for key in draw.sample(["op", "name", "target", "args", "kwargs"], 2):
                if key in other:
                    node[key] = json.loads(json.dumps(other[key]))


def _argument(draw, graph):
    if draw.random() < 0.5:
        return {"node": draw.randrange(len(graph))}
    return draw.choice([*_NUMBERS, [10**6, 10**6], [2, 3], *_TAGS])


def _reorder(draw, graph):
    kind, at = draw.random(), draw.randrange(len(graph))
    if kind < 0.4:
        del graph[at]
    elif kind < 0.7:
        graph.insert(at, json.loads(json.dumps(draw.choice(graph))))
    else:
        other = draw.randrange(len(graph))
        graph[at], graph[other] = graph[other], graph[at]


def _tensors(draw, data, words):
    """A safetensors file with another header, or with other bytes."""
    if draw.random() < 0.3:
        return _bytes(draw, data)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = draw.choice([key for key in header if key != "__metadata__"])
    kind = draw.random()
    if kind < 0.25:
        header[name]["dtype"] = draw.choice(
            ["F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "X"]
        )
    elif kind < 0.5:
        shape = header[name]["shape"]
        shape[:] = draw.choice([shape[::-1], [*shape, 1], [0], [], [2**62, 4], [-1], [1] * 70])
    elif kind < 0.7:
        header[draw.choice(words)] = header.pop(name)
    elif kind < 0.8:
        del header[name]
    elif kind < 0.9:
        header[name]["data_offsets"] = draw.choice([[0, 0], [8, 4], [0, 2**40], ["a", "b"]])
    else:
        header["__metadata__"] = draw.choice([{"format": "pt", "x": 1}, [], {"a": "b"}, "x" * 1000])
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _bytes(draw, data):
    """Bytes flipped, cut off, doubled or put between."""
    kind, at = draw.random(), draw.randrange(len(data))
    if kind < 0.5:
        changed = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 8])):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if kind < 0.65:
        return data[:at]
    if kind < 0.75:
        return data + data[: min(at, 10_000)]
    if kind < 0.8:
        return b"[" * draw.choice([1000, 200_000])
    return (
        data[:at] + draw.choice([b"\x00", b"[[[[", b"{", b'"', b"\xff\xfe", b"1e999"]) + data[at:]
    )
