"""One rule per op: how the axes of its outputs follow from those of its inputs."""
