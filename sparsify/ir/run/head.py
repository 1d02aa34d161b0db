"""The head of a language model, found in the graph, so that its logits can be made for some tokens at a time.

    logits = f(x W^T + b)      x [batch, length, hidden], W [vocabulary, hidden]

with f any ops on each logit alone (a scale, a soft cap, a cast), none as a rule.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sparsify.ir.features.tail import before_tail
from sparsify.ir.graph import output_nodes
from sparsify.ir.program import Program
from sparsify.ir.views.linear import linear_at, own_bias


@dataclass(frozen=True)
class Head:
    """The linear that makes the logits: nodes of its input, its weight as it enters, and its bias.

    `tail` are the ops on each logit that follow.
    """

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    tail: tuple[fx.Node, ...]

    @property
    def reads(self) -> list[fx.Node]:
        """What the rest of the program has to give: x, the weight, and the bias where there is one."""
        return [node for node in (self.x, self.weight, self.bias) if node is not None]

    def after(self, product: Tensor) -> Tensor:
        """Logits from the product `x W^T + b` of some tokens, `[..., vocabulary]`."""
        value = product
        for node in self.tail:
            (_, *rest), call = node.args, node.target
            assert callable(call)
            value = call(value, *rest, **node.kwargs)
        return value


def find_head(program: Program) -> Head | None:
    """The head of a program whose only output is logits of tokens; None for any other."""
    outputs = output_nodes(program)
    if len(outputs) != 1 or not isinstance(outputs[0], fx.Node):
        return None
    node, tail = before_tail(outputs[0])
    if len(node.users) != 1 or node.target is not torch.ops.aten.linear.default:
        return None
    view = linear_at(program, node)
    if view is None or node.meta["val"].dim() != 3 or view.x is not node.args[0]:
        return None
    return Head(view.x, view.operand, own_bias(view), tail)
