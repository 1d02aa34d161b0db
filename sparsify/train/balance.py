"""The balance loss: it draws the tokens of a batch apart over the experts of every router.

    B = mean over routers of E sum_i f_i P_i

f_i is the share of tokens that go to expert i, all `top` places counted, so that they sum to `top`; P_i the
mean over tokens of its probability, the softmax over all E, those that a mask leaves out not counted. B is
`top` where tokens are spread evenly, and has a gradient by P alone. A softmax over the chosen ones would make
it E, whatever the router does. Source: Fedus et al. 2021 (Switch Transformer, 2101.03961), section 2.2; PESC
(2401.02731), section 3.3.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from sparsify import ranks
from sparsify.errors import OptionError
from sparsify.ir.axes.walk import analyse
from sparsify.ir.features.experts import experts_beside
from sparsify.ir.program import Program
from sparsify.ir.views.router import masked_scores, numbers_of


class Balance:
    """The balance loss of a program's routers, its own and those of experts that passes added.

    `watched` are the nodes whose values it needs, two a router.
    """

    def __init__(self, program: Program) -> None:
        added = [(one.probabilities, one.numbers) for one in experts_beside(program)]
        own = [
            (masked_scores(router.node, router.scores), numbers_of(router.node)[0])
            for router in analyse(program).routers
        ]
        if not added and not own:
            raise OptionError(
                "balance spreads tokens over experts, and the program has no router that it can read: a "
                "top-k of what one linear gives, as it is or after a softmax"
            )
        self._added = len(added)
        self.watched: tuple[fx.Node, ...] = tuple(node for pair in (*added, *own) for node in pair)

    def __call__(self, values: Sequence[Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """B, a scalar, from the values of `watched`; padding counts for nothing."""
        mask = batch.get("attention_mask")
        terms = []
        for place in range(0, len(values), 2):
            scores, numbers = values[place : place + 2]
            scores, numbers = scores.flatten(0, -2), numbers.flatten(0, -2)
            each = scores if place // 2 < self._added else scores.float().softmax(-1)
            there = scores.isneginf().all(0).logical_not().sum()
            terms.append(balance(each, numbers, mask, there))
        return torch.stack(terms).mean()


def balance(
    probabilities: Tensor, numbers: Tensor, mask: Tensor | None, there: Tensor | int | None = None
) -> Tensor:
    """`E sum_i f_i P_i` of one router: probabilities `[tokens, E]`, numbers of experts `[tokens, top]`.

    `mask`, of as many entries as tokens, marks those that count; `there` is E where masks leave some out.
    Ranks count each other's tokens: the mean of what they return, and of its gradient, is B of all tokens.
    """
    tokens, size = probabilities.shape
    experts = size if there is None else there
    weights = probabilities.new_ones(tokens)
    if mask is not None and mask.numel() == tokens:
        weights = mask.flatten().to(probabilities)
    total = weights.sum()
    ranks.add_up(total)
    weights = (weights / total)[:, None]
    places = torch.zeros_like(probabilities).scatter(1, numbers, 1.0)
    shares, means = (weights * places).sum(0), (weights * probabilities).sum(0) * ranks.count()
    ranks.add_up(shares)
    return experts * (shares * means).sum()
