"""Where a model comes from: a licence and names are carried, paths of this machine are not."""

from types import SimpleNamespace

import pytest

from sparsify.pretrained.origin import CARD, is_origin, origin_of, short_name, without_places


def found(name, **config):
    """What is carried from a model of that name."""
    return origin_of(SimpleNamespace(name_or_path=str(name), config=SimpleNamespace(**config)))


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("org/name", "org/name"),
        ("name", "name"),
        ("embedded", "embedded"),
        ("/a/b/model", "model"),
        ("./model", "model"),
        ("~/models/one.gguf", "one.gguf"),
        ("a/b/c", "c"),
        ("C:\\models\\one", "one"),
        ("", ""),
    ],
)
def test_the_short_name_of_a_model(name, short):
    assert short_name(name) == short


def test_a_relative_folder_is_a_path_and_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert short_name("org/name") == "org/name"
    monkeypatch.chdir(tmp_path)
    assert short_name("org/name") == "name"
    assert found("org/name") == {}
    monkeypatch.chdir(tmp_path / "org" / "name")
    assert short_name(".") == "name"


def test_the_paths_in_a_config_become_names(tmp_path):
    inner = {"_name_or_path": f"{tmp_path}/vision", "sizes": [1, 2]}
    config = {"_name_or_path": str(tmp_path / "both"), "vision": inner, "path": "/stays/as/it/is"}
    assert without_places(config) == {
        "_name_or_path": "both",
        "vision": {"_name_or_path": "vision", "sizes": [1, 2]},
        "path": "/stays/as/it/is",
    }
    assert config["vision"]["_name_or_path"] == f"{tmp_path}/vision"
    assert without_places({"a": 1}) == {"a": 1}


def test_a_hub_id_is_the_base_model_with_its_commit(tmp_path):
    assert found("org/name") == {"base_model": "org/name"}
    assert found("org/name", _commit_hash="0a1b") == {"base_model": "org/name", "revision": "0a1b"}
    for name in ("", "gpt2", "/gone/away", str(tmp_path / "gone")):
        assert found(name, _commit_hash="0a1b") == {}


def test_a_folder_gives_the_licence_of_its_card(tmp_path):
    assert found(tmp_path) == {}
    head = "license: other\nlicense_name: mine\nlicense_link: LICENSE\nbase_model: org/older"
    (tmp_path / "LICENSE").write_text("terms")
    (tmp_path / CARD).write_text(f"---\n{head}\n---\n# words\n")
    licence = {"license": "other", "license_name": "mine", "license_link": "LICENSE"}
    assert found(tmp_path) == {**licence, "license_text": "terms"}
    (tmp_path / CARD).write_text(f"---\n{head}\ntags:\n- sparsify-fx\n---\n")
    assert found(tmp_path)["base_model"] == "org/older"
    (tmp_path / "LICENSE").write_bytes(b"\xff\xfe")
    assert "license_text" not in found(tmp_path)
    (tmp_path / CARD).write_text("---\nlicense: [\n---\n")
    assert found(tmp_path) == {}


@pytest.mark.parametrize(
    "link", ["../LICENSE", "https://terms.org/LICENSE", "vocab.txt", "config.json"]
)
def test_a_link_to_another_kind_of_file_is_only_a_link(link, tmp_path):
    (tmp_path / "vocab.txt").write_text("words")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / CARD).write_text(f"---\nlicense: other\nlicense_link: {link}\n---\n")
    assert found(tmp_path) == {"license": "other", "license_link": link}


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ({}, True),
        ({"license": ["mit", "apache-2.0"], "base_model": "org/name", "revision": "0a"}, True),
        ({"license_link": "LICENSE.md", "license_text": "terms"}, True),
        ({"license_text": "terms"}, False),
        ({"license_link": "../LICENSE", "license_text": "terms"}, False),
        ({"license_link": "vocab.txt", "license_text": "terms"}, False),
        ({"license_link": "LICENSE", "license_text": ["terms"]}, False),
        ({"license_link": "LICENSE", "license_text": "x" * (2**20 + 1)}, False),
        ({"license": 1}, False),
        ({"tags": "a"}, False),
        ([], False),
    ],
)
def test_what_a_stored_origin_may_say(value, fits):
    assert is_origin(value) is fits
