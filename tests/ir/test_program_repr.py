"""A program in one line, and as a table of a notebook."""

from sparsify import parse


def test_it_says_what_it_is(traced):
    program = traced("llama")
    count = sum(value.numel() for value in program.module.parameters())
    nodes = len(program.graph.nodes)
    assert repr(program) == f"Program(LlamaForCausalLM, {nodes} nodes, {count:,} parameters)"
    parse("insert-masks | choose-masks{sparsity=0.5}").run(program)
    assert repr(program).endswith(" parameters, mask.weights)")


def test_a_notebook_shows_inputs_and_pipeline(traced):
    program = traced("llama")
    parse("insert-masks{targets=*up_proj*}").run(program)
    page = program._repr_html_()
    assert "<td style='text-align:left'>int64 [batch, length]</td>" in page
    assert "insert-masks{targets=*up_proj*}" in page
    assert page.count("<tr>") == page.count("</tr>")


def test_what_is_written_is_escaped(traced):
    program = traced("llama")
    program.log.append("<b>")
    assert "<b>" not in program._repr_html_()
