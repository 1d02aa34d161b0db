"""Typed readings of nodes: passes look at programs through these and never at `node.args`."""
