"""`stream` on the command line."""

import json

from sparsify.pretrained.load import load_model

MASKS = "choose-masks{score=sparsegpt pattern=2:4}"


def test_stream_prunes_into_a_folder(model, text, tmp_path, cli):
    words = ["stream", "--model", model, "--data", text, "--length", 16, "--samples", 4]
    words += ["--dtype", "float32", "--out", tmp_path / "out"]
    code, printed, _ = cli(*words, "--masks", MASKS, "--json", tmp_path / "stream.json")
    assert code == 0
    figures = json.loads((tmp_path / "stream.json").read_text())
    assert figures["folder"] == str(tmp_path / "out")
    assert figures["bytes"] == sum(p.stat().st_size for p in (tmp_path / "out").iterdir())
    assert printed.startswith(f"written: {tmp_path / 'out'}")
    pruned, tokenizer = load_model(str(tmp_path / "out"))
    weight = pruned.get_parameter("model.layers.1.mlp.up_proj.weight")
    assert int((weight == 0).sum()) == weight.numel() // 2
    assert tokenizer is not None
    code, _, error = cli(*words, "--masks", MASKS)
    assert (code, "is not empty" in error) == (1, True)


def test_a_plan_reads_no_weight_and_writes_nothing(model, tmp_path, cli):
    (tmp_path / "bare").mkdir()
    config = (model / "config.json").read_text()
    (tmp_path / "bare" / "config.json").write_text(config)
    words = ["stream", "--model", tmp_path / "bare", "--out", tmp_path / "out", "--plan"]
    code, printed, _ = cli(*words, "--masks", MASKS, "--json", tmp_path / "plan.json")
    assert code == 0
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert (figures["layers"], figures["linears"]) == (2, 14)
    assert figures["seconds"] > 0
    assert "2, 14" in printed  # layers, linears
    assert "peak memory" in printed
    assert not (tmp_path / "out").exists()


def test_what_stream_cannot_do_is_told(model, text, tmp_path, cli):
    words = ["stream", "--model", model, "--out", tmp_path / "out"]
    for masks, sentence in (
        ("insert-masks", "is not one choose-masks"),
        ("choose-masks{of=heads sparsity=0.5}", "use 'run' for heads, channels and scope=global"),
        ("choose-masks{score=taylor sparsity=0.5}", "does not prune a linear by itself"),
        (MASKS[:-1] + " scales=mse}", "which a streamed model has not; use 'run'"),
        ("choose-masks", "choose either a sparsity"),
        (MASKS, "name it with --data"),
    ):
        code, _, error = cli(*words, "--masks", masks)
        assert (code, sentence in error) == (1, True), (masks, error)
        assert not (tmp_path / "out").exists()
