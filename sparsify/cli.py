"""The command line: `sparsify-fx VERB ...`, also `python -m sparsify`.

What a verb needs is imported when it runs: help and wrong usage answer without torch.
"""

import json as json_text
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from sparsify.commands.catalogue import check_words, show_passes, show_recipes
from sparsify.commands.config import typed_alone
from sparsify.commands.export import export_model, kernels
from sparsify.commands.fuse import fuse_models
from sparsify.commands.launch import check_verb, joined
from sparsify.commands.loudness import Quiet, Verbose, console, set_loudness
from sparsify.commands.options import (
    Against,
    Batch,
    Config,
    Device,
    Dump,
    Formats,
    Json,
    Length,
    Limit,
    Model,
    Out,
    Overwrite,
    Rounds,
    Samples,
    Seed,
    Source,
    Spread,
    Temperature,
    Threads,
    Tokens,
    Track,
    Trust,
    Verify,
    asks_tasks,
    loads_models,
    say_version,
    words,
    writable_folder,
)
from sparsify.commands.push import push_folder
from sparsify.commands.reading import Reading, reads_data
from sparsify.commands.saved_text import show_model
from sparsify.errors import OptionError, SparsifyError, sentence_of
from sparsify.measure.suite import Suite
from sparsify.pretrained.loading import Loading
from sparsify.recipes.catalogue import recipe as find_recipe
from sparsify.signals import Interrupted, listening

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def face(
    context: typer.Context,
    quiet: Quiet = False,
    verbose: Verbose = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=say_version, is_eager=True),
    ] = False,
) -> None:
    """A compiler for sparse language models: trace, mask, train, prune, export, measure."""
    check_verb(context.invoked_subcommand)
    set_loudness(context, quiet, verbose)


@app.command()
def demo(
    out: Out = Path("demo-out"),
    model: Source = "embedded",
    threads: Threads = 1,
    overwrite: Overwrite = False,
) -> None:
    """A model through a few recipes: table and picture of quality, size and speed."""
    from sparsify.commands.demo import demo as run_demo

    run_demo(out, model, threads, overwrite, console)


@app.command()
@loads_models
@reads_data
def run(
    context: typer.Context,
    model: Source,
    out: Out,
    config: Config = None,
    recipe: Annotated[str | None, typer.Option(help="A named pipeline; see 'recipes'.")] = None,
    pipeline: Annotated[str | None, typer.Option(help="A pipeline as text; see 'passes'.")] = None,
    to: Formats = "safetensors",
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: str = "float32",
    threads: Threads = 0,
    dump: Dump = None,
    track: Track = "",
    json: Json = None,
    resume: Annotated[bool, typer.Option(help="Go on with the interrupted run in --out.")] = False,
    overwrite: Overwrite = False,
    plan: Annotated[bool, typer.Option(help="Only say what its trainings would take.")] = False,
    ranks: Annotated[int, typer.Option(help="Of a plan: processes that share the work.")] = 1,
    sharded: Annotated[bool, typer.Option(help="Of a plan: FSDP2 in place of DDP.")] = False,
    *,
    reading: Reading,
    loading: Loading,
) -> None:
    """Run a model through a recipe or a pipeline and export the result."""
    recipe, pipeline = typed_alone(context, recipe=recipe, pipeline=pipeline)
    if (recipe is None) == (pipeline is None):
        raise OptionError("give either --recipe or --pipeline")
    text = find_recipe(recipe).text if recipe else str(pipeline)
    check_words(text)
    from sparsify.commands import run as run_command
    from sparsify.disk.files import write_json
    from sparsify.engine.pipeline import parse
    from sparsify.ranks import is_first

    job = run_command.Job(
        model=model, pipeline=parse(text), out=out, seed=seed, device=device, dtype=dtype,
        threads=threads, dump=dump, resume=resume, overwrite=overwrite, to=words(to), loading=loading,
        track=words(track),
        **asdict(reading),
    )  # fmt: skip
    if plan:
        from sparsify.commands.plan import show_plan

        show_plan(job, ranks, sharded, console, json)
        return
    _, report = run_command.run(job, console)
    if json is not None and is_first():
        write_json(json, report.to_json())


@app.command()
def stream(
    model: Annotated[str, typer.Option(help="A Hugging Face folder, or 'embedded'.")],
    masks: Annotated[str, typer.Option(help="One pass, as in choose-masks{pattern=2:4}")],
    out: Annotated[
        Path, typer.Option(help="The new Hugging Face folder.", callback=writable_folder)
    ],
    data: Annotated[str | None, typer.Option(help="Text to calibrate on, as for 'run'.")] = None,
    samples: Samples = 128,
    length: Length = 512,
    batch: Batch = 8,
    seed: Seed = 0,
    order: Annotated[
        str, typer.Option(help="What is pruned before a linear sees it: 'linear' all, or 'layer'.")
    ] = "linear",
    dtype: Annotated[str, typer.Option(help="Of weights and activations.")] = "bfloat16",
    device: Spread = "cpu",
    on_disk: Annotated[bool, typer.Option(help="Keep activations on disk.")] = False,
    plan: Annotated[bool, typer.Option(help="Only say what it would take.")] = False,
    trust_remote_code: Trust = False,
    resume: Annotated[bool, typer.Option(help="Go on with the interrupted run in --out.")] = False,
    json: Json = None,
) -> None:
    """Prune a model that need not fit in memory, layer by layer, into a Hugging Face folder."""
    check_words(masks)
    from sparsify.commands import stream as stream_command

    source = stream_command.Source(data, length)
    job = stream_command.job_of(
        model, masks, source, out=out, samples=samples, batch=batch, seed=seed, order=order,
        dtype=dtype, device=device, on_disk=on_disk, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    if plan:
        stream_command.show_plan(job, source, console, json)
    else:
        stream_command.stream(job, source, console, resume=resume, json=json)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a file for 'run --config', for editors."""
    from sparsify.commands.schema import schema_of

    print(json_text.dumps(schema_of(run), indent=1, ensure_ascii=False))


app.command("show")(show_model)
app.command("passes")(show_passes)
app.command("recipes")(show_recipes)


@app.command("eval")
@loads_models
@asks_tasks
def evaluate(
    folder: Model,
    data: Annotated[str | None, typer.Option(help="Text to measure on, as for 'run'.")] = None,
    length: Length = 128,
    limit: Limit = None,
    batch: Batch = 8,
    against: Against = None,
    json: Json = None,
    *,
    loading: Loading,
    suite: Suite | None,
) -> None:
    """Measure every model in a folder: perplexity, scores on tasks, or similarity to another encoder."""
    from sparsify.commands import evaluate as evaluate_command

    job = evaluate_command.Job(data, length, limit, batch, against, suite)
    evaluate_command.evaluate(folder, job, json, console, loading)


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(help="A folder with a model of format onnx-decode.")],
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    tokens: Tokens = 64,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    threads: Threads = 0,
    json: Json = None,
    trust_remote_code: Trust = False,
    verify: Verify = True,
) -> None:
    """Continue a prompt on ONNX Runtime, with a cache, and say how fast."""
    from sparsify.commands.generate import generate as continue_prompt

    loading = Loading(trust_remote_code=trust_remote_code, verify=verify)
    continue_prompt(folder, prompt, tokens, temperature, seed, threads, json, console, loading)


app.command("fuse")(fuse_models)


app.command("export")(export_model)
app.command("kernels")(kernels)
app.command("push")(push_folder)


@app.command()
@loads_models
def bench(
    folder: Model,
    against: Annotated[str, typer.Option(help="The dense model.")],
    tokens: Annotated[str, typer.Option(help="Lengths to time, separated by commas.")] = "1,128",
    threads: Threads = 1,
    rounds: Rounds = 30,
    json: Json = None,
    *,
    loading: Loading,
) -> None:
    """Time a model on ONNX Runtime against its dense twin, in one process."""
    try:
        lengths = [int(word) for word in words(tokens)]
    except ValueError as error:
        raise OptionError(f"--tokens takes whole numbers, not '{tokens}'") from error
    from sparsify.commands.bench import bench as time_models

    time_models(folder, against, lengths, threads, rounds, json, console, loading)


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(help="The --out folder of a run, or any exported model.")
    ],
) -> None:
    """Write one HTML page about a run or a model: sparsity by layer, sizes, and what was measured."""
    from sparsify.commands.report import report as write_report

    console.print(str(write_report(folder)), soft_wrap=True, markup=False)


def main() -> NoReturn:
    """Run the command line: 0 done, 1 an error in one sentence, 2 wrong usage, 130 and 143 after a signal."""
    try:
        with listening(), joined():
            app()
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.code)
    except (SparsifyError, OSError, RuntimeError, MemoryError) as error:
        said = sentence_of(error)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)
