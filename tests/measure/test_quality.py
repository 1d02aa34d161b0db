"""Perplexity against a sum done by hand, and cosines of embeddings."""

import itertools
import math

import pytest
import torch

from sparsify.data.sequences import TensorData, TextData
from sparsify.errors import DataError, SparsifyError
from sparsify.measure.quality import cosine, embed, perplexity, pool

VOCABULARY = 7


def table_model(seed=0):
    """A model whose next-token logits depend on the present token alone."""
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return table, lambda batch: table[batch["input_ids"]]


def by_hand(table, rows):
    losses = []
    for row in rows:
        for now, then in itertools.pairwise(row):
            scores = [math.exp(value) for value in table[now].tolist()]
            losses.append(-math.log(scores[then] / sum(scores)))
    return sum(losses) / len(losses), len(losses)


def test_perplexity_by_hand_whatever_the_batch_size():
    tokens = torch.randint(VOCABULARY, (31,), generator=torch.Generator().manual_seed(1))
    table, model = table_model()
    rows = [tokens[i : i + 6].tolist() for i in range(0, 30, 6)]
    loss, count = by_hand(table, rows)
    for batch_size in (1, 2, 5):
        result = perplexity(model, TextData(tokens, 6), batch_size)
        assert result.loss == pytest.approx(loss, rel=1e-6)
        assert result.value == pytest.approx(math.exp(loss), rel=1e-6)
        assert (result.tokens, result.context) == (count, 6)


def test_a_limit_takes_the_first_sequences():
    table, model = table_model()
    tokens = torch.arange(24) % VOCABULARY
    loss, count = by_hand(table, [tokens[:6].tolist(), tokens[6:12].tolist()])
    result = perplexity(model, TextData(tokens, 6), batch_size=8, limit=2)
    assert (result.loss, result.tokens) == (pytest.approx(loss, rel=1e-6), count)


def test_padding_and_ignored_labels_weigh_nothing():
    table, model = table_model()
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [1, 2, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
    labels = torch.where(torch.tensor([[1], [1], [0]]) == 1, ids, -100)
    data = TensorData({"input_ids": ids, "attention_mask": mask, "labels": labels})
    loss, count = by_hand(table, [[1, 2, 3, 4], [5, 6]])
    result = perplexity(model, data, batch_size=2)
    assert (result.loss, result.tokens) == (pytest.approx(loss, rel=1e-6), count)


def test_labels_are_not_shown_to_the_model():
    seen = []

    def model(batch):
        seen.append(set(batch))
        return torch.zeros(*batch["input_ids"].shape, VOCABULARY)

    result = perplexity(model, TextData(torch.arange(6), 6))
    assert seen == [{"input_ids", "attention_mask"}]
    assert result.value == pytest.approx(VOCABULARY)


def test_states_are_pooled_over_the_kept_tokens():
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [99.0, 99.0]], [[5.0, 6.0], [0, 0], [0, 0]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert pool(states, mask).tolist() == [[2.0, 3.0], [5.0, 6.0]]


def test_embeddings_are_compared_by_their_direction():
    ids = torch.tensor([[1, 2], [3, 0], [4, 5]])
    mask = torch.tensor([[1, 1], [1, 0], [1, 1]])
    data = TensorData({"input_ids": ids, "attention_mask": mask})
    table, model = table_model()
    first = embed(model, data, batch_size=2)
    assert torch.allclose(first[1], table[3])
    assert first.shape == (3, VOCABULARY)
    same = cosine(first, 2 * first)
    assert (same.mean, same.lowest, same.sentences) == (pytest.approx(1), pytest.approx(1), 3)
    turned = cosine(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert (turned.mean, turned.lowest) == (0.5, 0.0)


def constant(value):
    return lambda batch: torch.full((*batch["input_ids"].shape, VOCABULARY), value)


TEXT = TextData(torch.arange(6), 3)
BLANK = TensorData({"input_ids": torch.zeros(1, 3, dtype=torch.long),
                    "attention_mask": torch.tensor([[1, 0, 0]])})  # fmt: skip
CASES = [
    (lambda: perplexity(constant(math.nan), TEXT), SparsifyError,
     "the loss became nan within 4 tokens; the weights hold NaN or have grown too large"),
    (lambda: perplexity(constant(0.0), BLANK), DataError,
     "the data has no token to predict; every label is padding"),
    (lambda: perplexity(constant(0.0), TEXT, limit=0), DataError,
     "0 sequences were asked for; ask for 1 or more"),
    (lambda: cosine(torch.zeros(2, 3), torch.zeros(2, 4)), SparsifyError,
     "embeddings of [2, 3] and [2, 4] cannot be compared; take them of the same sentences"),
    (lambda: cosine(torch.full((2, 3), math.nan), torch.ones(2, 3)), SparsifyError,
     "the embeddings hold NaN or infinite numbers; the weights are damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "sentence"), CASES)
def test_what_cannot_be_measured_is_told(call, kind, sentence):
    with pytest.raises(SparsifyError) as error:
        call()
    assert (type(error.value), str(error.value)) == (kind, sentence)
