"""Domains: how they are named in one line, what is held out, and the proportions in which they are drawn."""

import gzip
from collections import Counter
from pathlib import Path

import pytest
import torch

from sparsify.data.domains import DomainData, Draws
from sparsify.data.load import load_data
from sparsify.data.sequences import TensorData, TextData, sample
from sparsify.data.spec import Source, parse_sources, without_folders
from sparsify.engine.fingerprint import data_fingerprint
from sparsify.errors import DataError
from sparsify.ir.facts.fitting import extent


class Words:
    """A tokenizer: each letter is its own id; lines for sentences."""

    pad_token_id, eos_token_id, chat_template = 0, None, None

    def __call__(self, text, **options):
        if isinstance(text, str):
            return {"input_ids": [ord(letter) for letter in text]}
        most = options["max_length"]
        return {"input_ids": [[ord(letter) for letter in each][:most] for each in text]}


def numbered(first, count, length=4):
    """`count` sequences of a domain; the ids of the first are all `first`, those of the next one more."""
    return TextData((first + torch.arange(count)).repeat_interleave(length), length)


def three(holdout=0.2, **weights):
    """Domains of 10, 20 and 30 sequences, whose ids are 100, 200 and 300 and more."""
    data = {"a": numbered(100, 10), "b": numbered(200, 20), "c": numbered(300, 30)}
    return DomainData(data, weights or None, holdout)


def drawn(data, indices):
    """The first id of each sequence."""
    return data.batch(indices)["input_ids"][:, 0].tolist()


@pytest.mark.parametrize(
    ("spec", "sources"),
    [
        ("a.txt", [Source("a.txt")]),
        ("wikitext:wikitext-2-raw-v1:test", [Source("wikitext:wikitext-2-raw-v1:test")]),
        ("imdb:train[:10%]", [Source("imdb:train[:10%]")]),
        ("owner/set:a=b", [Source("owner/set:a=b")]),
        (" a.txt", [Source(" a.txt")]),
        ("web=a.csv#body:0.7,code=b.jsonl#x:0.3",
         [Source("a.csv#body", "web", 0.7), Source("b.jsonl#x", "code", 0.3)]),
        ("a.txt,b", [Source("a.txt"), Source("b")]),
        ("web=a.txt", [Source("a.txt", "web")]),
        ("web=a.txt, code=b.txt", [Source("a.txt", "web"), Source("b.txt", "code")]),
        ("web=a.txt:0.7,code=b:c:test:.3",
         [Source("a.txt", "web", 0.7), Source("b:c:test", "code", 0.3)]),
        ("web=wikitext:test,code=d/x=y.txt", [Source("wikitext:test", "web"), Source("d/x=y.txt", "code")]),
    ],
)  # fmt: skip
def test_a_line_names_sources_domains_and_weights(spec, sources):
    assert parse_sources(spec) == sources


def test_a_path_that_is_there_is_that_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("web=a.txt", "a,b.txt", "a.txt:0.7", "x=a.txt:0.5,y=b.txt:0.5"):
        Path(name).write_text("text")
        assert parse_sources(name) == [Source(name)]
    assert parse_sources("code=a.txt:0.7") == [Source("a.txt:0.7", "code")]
    assert parse_sources("code=a.txt:0.6") == [Source("a.txt", "code", 0.6)]
    assert parse_sources("a,b.txt,web=a.txt") == [Source("a"), Source("b.txt"), Source("web=a.txt")]


def test_a_line_may_be_longer_than_any_name_of_a_file():
    names = [f"domain{number}" for number in range(40)]
    line = ",".join(f"{name}={name}.txt:0.025" for name in names)
    assert parse_sources(line) == [Source(f"{name}.txt", name, 0.025) for name in names]


def test_a_line_for_people_has_no_folders():
    assert without_folders("/x/y/a.txt") == "a.txt"
    assert without_folders("x/a.txt,y/b.txt") == "a.txt,b.txt"
    assert without_folders("web=/x/a.txt:0.7,code=y/b.txt:0.3") == "web=a.txt:0.7,code=b.txt:0.3"
    assert without_folders("web=/x/y/a.csv#body:0.7") == "web=a.csv#body:0.7"
    for dataset in ("owner/set", "owner/set-1.0:config:test#body", "imdb:train[:10%]"):
        assert without_folders(dataset) == dataset


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("web=a.txt,b.txt", "the data 'web=a.txt,b.txt' gives some sources a name and 'b.txt' none; "
         "name all, as in web=a.txt,code=b.txt, or none"),
        ("web=a.txt:0.5,code=b.txt", "the data 'web=a.txt:0.5,code=b.txt' has no weight for 'code'; give all "
         "weights, or none"),
        ("web=a.txt,web=b.txt", "the domain 'web' is named twice"),
        ("w b=a.txt,c=b.txt",
         "'w b' cannot be the name of a domain; use letters, digits, '_', '-' and '.'"),
        ("a.txt,", "the data 'a.txt,' has a comma with nothing beside it"),
        ("web=,code=b.txt", "the data 'web=,code=b.txt' has a comma with nothing beside it"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_meant(spec, sentence):
    with pytest.raises(DataError) as error:
        parse_sources(spec)
    assert str(error.value) == sentence


def test_what_is_held_out_is_the_end_of_each_domain_and_is_never_drawn():
    data = three()
    assert (len(data), data.names, data.length) == (8 + 16 + 24, ("a", "b", "c"), 4)
    assert [domain.weight for domain in data.domains] == [8 / 48, 16 / 48, 24 / 48]
    held = [drawn(domain.held, range(len(domain.held))) for domain in data.domains]
    assert held == [[108, 109], [216, 217, 218, 219], [324, 325, 326, 327, 328, 329]]
    assert drawn(data, [0, 7, 8, 23, 24, 47]) == [100, 107, 200, 215, 300, 323]
    seen = set(drawn(data, Draws(data, 0).take(500)))
    assert len(seen) == len(data)
    assert not seen & {id_ for each in held for id_ in each}
    with pytest.raises(IndexError, match="sequence 48 of data that has 48"):
        data.batch([48])
    assert data.described()["b"] == {"weight": 16 / 48, "sequences": 16, "held_out": 4}


def test_a_batch_keeps_its_order_over_domains():
    data = three()
    assert drawn(data, [30, 3, 12, 0, 31]) == [306, 103, 204, 100, 307]
    batch = data.batch([30, 3])
    assert {name: value.shape for name, value in batch.items()} == {
        name: (2, 4) for name in ("input_ids", "attention_mask", "labels")
    }
    assert data.batch([])["input_ids"].shape == (0, 4)


def test_sequences_of_other_lengths_are_padded_and_their_own_tokens_stay():
    short, long = numbered(1, 4, length=2), numbered(5, 4, length=3)
    batch = DomainData({"a": short, "b": long}, holdout=0).batch([4, 0])
    assert batch["input_ids"].tolist() == [[5, 5, 5], [1, 1, 0]]
    assert batch["labels"].tolist() == [[5, 5, 5], [1, 1, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize("shares", [(0.5, 0.3, 0.2), (0.67, 0.045, 0.285), (0.1, 0.1, 0.8)])
def test_domains_are_drawn_in_proportion_and_at_any_moment(shares):
    data = three(**dict(zip("abc", shares, strict=True)))
    draws, seen = Draws(data, 3), Counter()
    for count in range(1, 400):
        (index,) = draws.take(1)
        seen[data.domain_of(index)] += 1
        for number, share in enumerate(shares):
            assert abs(seen[number] - share * count) <= 1
    assert [seen[number] for number in range(3)] == draws.taken


def test_a_domain_is_used_up_before_a_sequence_comes_again():
    data = three(a=0.8, b=0.1, c=0.1)
    firsts = [id_ for id_ in drawn(data, Draws(data, 1).take(100)) if id_ < 200]
    assert len(firsts) == 80
    epochs = [firsts[start : start + 8] for start in range(0, 80, 8)]
    assert all(sorted(epoch) == list(range(100, 108)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5


def test_draws_are_those_of_their_seed_and_go_on_from_their_state():
    data = three()
    assert Draws(data, 4).take(60) == Draws(data, 4).take(60) != Draws(data, 5).take(60)
    whole, first = Draws(data, 4), Draws(data, 4)
    wanted = whole.take(33)
    assert first.take(20) == wanted[:20]
    first.weights = [0.2, 0.2, 0.6]
    again = Draws(data, 4)
    again.load(first.state())
    assert again.take(50) == first.take(50)
    assert again.weights == [0.2, 0.2, 0.6]


def test_a_sample_is_in_the_proportions_of_the_weights():
    data = three(a=0.5, b=0.25, c=0.25)
    found = sample(data, 16, 0)
    assert len(set(found)) == 16
    assert Counter(data.domain_of(index) for index in found) == {0: 8, 1: 4, 2: 4}
    # Of a domain with too few some come again, in place of others' in other proportions.
    more = sample(data, 999, 0)
    assert Counter(data.domain_of(index) for index in more) == {0: 24, 1: 12, 2: 12}
    assert len({index for index in more if index < 8}) == 8
    assert sample(data, 16, 0) == found != sample(data, 16, 1)
    plain = three(holdout=0.05)
    assert sorted(sample(plain, 99, 2)) == list(range(len(plain)))


WEIGHTS = [
    ({"a": 0.5, "b": 0.5}, "the domain 'c' has no weight; give all weights, or none"),
    ({"a": 0.5, "b": 0.3, "c": 0.2, "d": 0.1},
     "there is a weight for 'd', which is no domain; there are: a, b, c"),
    ({"a": 0.5, "b": 0.3, "c": 0.1}, "the weights of the domains sum to 0.9, and should to 1"),
    ({"a": 1.2, "b": -0.3, "c": 0.1}, "the weight -0.3 of the domain 'b' must be more than 0; leave out a "
     "domain that is not to be drawn"),
    ({"a": 1.0, "b": 0.0, "c": 0.0}, "the weight 0 of the domain 'b' must be more than 0; leave out a "
     "domain that is not to be drawn"),
    ({"a": float("nan"), "b": 0.3, "c": 0.2}, "the weight nan of the domain 'a' must be more than 0; "
     "leave out a domain that is not to be drawn"),
]  # fmt: skip


@pytest.mark.parametrize(("weights", "sentence"), WEIGHTS)
def test_weights_that_make_no_sense(weights, sentence):
    with pytest.raises(DataError) as error:
        three(**weights)
    assert str(error.value) == sentence


def test_rounded_weights_are_made_to_sum_to_one():
    shares = [domain.weight for domain in three(a=0.333, b=0.333, c=0.333).domains]
    assert sum(shares) == pytest.approx(1, abs=1e-15)


BARE = TensorData({"input_ids": torch.ones(4, 4, dtype=torch.long)})
LONGER = TensorData({"input_ids": torch.ones(4, 5, dtype=torch.long)})
BAD = [
    (lambda: DomainData({"a": numbered(1, 1)}), "the domain 'a' has 1 sequence, too few to train on and hold "
     "out some; bring more text, use a shorter length, or hold out nothing"),
    (lambda: DomainData({}), "the data has no domain"),
    (lambda: three(1.0), "a held-out share of 1 must be at least 0 and less than 1"),
    (lambda: DomainData({"a": numbered(1, 4), "b": BARE}), "the domain 'b' has input_ids, and 'a' has "
     "attention_mask, input_ids, labels; give all the same"),
    (lambda: DomainData({"a": BARE, "b": LONGER}), "the domains 'a' and 'b' differ in length (4 and 5 "
     "tokens) and have no attention_mask; add it, or cut them alike"),
    (lambda: DomainData({"a:b": BARE}),
     "'a:b' cannot be the name of a domain; use letters, digits, '_', '-' and '.'"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "sentence"), BAD)
def test_domains_that_cannot_be(make, sentence):
    with pytest.raises(DataError) as error:
        make()
    assert str(error.value) == sentence


def test_extent_and_fingerprint_go_over_what_is_held_out_too():
    data = three()
    assert extent(data).largest == 329
    prints = {
        data_fingerprint(each)
        for each in (three(), three(0.1), three(a=0.2, b=0.4, c=0.4), three(a=0.4, b=0.2, c=0.4))
    }
    assert len(prints) == 4
    assert data_fingerprint(three()) == data_fingerprint(data)
    other = DomainData(
        {"a": numbered(100, 10), "b": numbered(200, 20), "d": numbered(300, 30)}, None, 0.2
    )
    assert data_fingerprint(other) != data_fingerprint(data)


@pytest.fixture
def files(tmp_path):
    """Two texts of 40 and 20 letters."""
    (tmp_path / "a.txt").write_text("a" * 40)
    (tmp_path / "b.txt").write_text("b" * 20)
    return tmp_path


def test_domains_are_loaded_from_a_mapping_or_a_line(files):
    a, b = str(files / "a.txt"), str(files / "b.txt")
    one = load_data({"web": a, "code": b}, Words(), 4, weights={"web": 0.7, "code": 0.3})
    two = load_data(f"web={a}:0.7,code={b}:0.3", Words(), 4)
    assert data_fingerprint(one) == data_fingerprint(two)
    assert [(d.name, d.weight, len(d.data), len(d.held)) for d in one.domains] == [
        ("web", 0.7, 9, 1),
        ("code", 0.3, 4, 1),
    ]
    sentences = load_data({"web": a, "code": b}, Words(), 7, "sentences", holdout=0)
    assert sentences.batch([1, 0])["input_ids"].tolist() == [[98] * 7, [97] * 7]


def test_sources_without_names_are_one_data_set(files):
    a, b = str(files / "a.txt"), str(files / "b.txt")
    together = load_data(f"{a},{b}", Words(), 4)
    assert type(together) is TextData
    assert data_fingerprint(together) == data_fingerprint(load_data(str(files), Words(), 4))
    alone = load_data(a, Words(), 4)
    assert type(alone) is TextData
    assert torch.equal(alone.batch(range(10))["input_ids"], torch.full((10, 4), 97))


def test_a_path_is_one_source_whatever_its_name(files):
    a, b = files / "a.txt", files / "b.txt"
    wanted = data_fingerprint(load_data(str(a), Words(), 4))
    assert data_fingerprint(load_data(a, Words(), 4)) == wanted
    domains = load_data({"web": a, "code": b}, Words(), 4)
    by_text = load_data({"web": str(a), "code": str(b)}, Words(), 4)
    assert data_fingerprint(domains) == data_fingerprint(by_text)
    missing = files / "x=a,b.txt"  # as text, domain x and another source
    with pytest.raises(DataError, match=r"x=a,b\.txt' does not exist"):
        load_data(missing, Words(), 4)
    assert data_fingerprint(load_data(a.rename(missing), Words(), 4)) == wanted


def test_compressed_text_is_the_text(files):
    (files / "c.txt.gz").write_bytes(gzip.compress(b"a" * 40))
    (files / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"a" * 40 + b'"}\n'))
    wanted = data_fingerprint(load_data(str(files / "a.txt"), Words(), 4))
    for name in ("c.txt.gz", "d.jsonl.gz"):
        assert data_fingerprint(load_data(str(files / name), Words(), 4)) == wanted
    broken = files / "e.txt.gz"
    broken.write_bytes(gzip.compress(b"a" * 40)[:-9])
    with pytest.raises(DataError, match=r"e\.txt\.gz' cannot be decompressed: "):
        load_data(str(broken), Words(), 4)
    broken.write_bytes(b"plain")
    with pytest.raises(DataError, match="cannot be decompressed: Not a gzipped file"):
        load_data(str(broken), Words(), 4)


def test_what_a_domain_lacks_is_told_with_its_name(files):
    a, b = str(files / "a.txt"), str(files / "b.txt")
    with pytest.raises(DataError) as error:
        load_data({"web": a, "code": b}, Words(), 32)
    assert str(error.value).startswith(
        f"domain 'code': the data '{b}' has 20 tokens, fewer than one sequence of 32"
    )
    with pytest.raises(DataError, match="the domain 'code' has 1 sequence, too few to train on"):
        load_data({"web": a, "code": b}, Words(), 16)
    with pytest.raises(DataError, match="has weights already; give them once"):
        load_data(f"web={a}:1.0", Words(), 4, weights={"web": 1.0})
    with pytest.raises(DataError, match="has no domains to weigh; name them"):
        load_data(a, Words(), 4, weights={"web": 1.0})
