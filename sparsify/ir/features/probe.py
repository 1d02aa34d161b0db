"""Probes: the identity on an activation, with statistics beside it."""

from sparsify.ir.features.feature import Feature
from sparsify.ir.graph import redirect, sweep
from sparsify.ir.program import Program
from sparsify.ir.tensor_names import probe, route_probe
from sparsify.ir.views.probe import Probe, probes


def drop_probe(program: Program, view: Probe) -> None:
    """Let every reader of a probe read what the probe watched."""
    redirect(view.node, view.x)
    sweep(program)


FEATURES = (
    # Every probe counts, whatever else it keeps.
    Feature(
        "probe",
        (probe("", "count"), route_probe("", "count")),
        lambda program: list(probes(program)),
        drop_probe,
    ),
    # What `calibrate` has made probes know.
    Feature("stats", in_values=True),
)
