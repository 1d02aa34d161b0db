"""Ladders of sparsity over steps, as numbers alone."""


def cubic(step: int, steps: int, target: float, start: float = 0.0) -> float:
    """The sparsity after a step of a cubic ladder: `target + (start - target) (1 - step / steps)^3`.

    Source: Zhu and Gupta 2017 (1710.01878), equation 1; LoSA (2502.14816), section 3.1; DPF (2006.07253).
    """
    return target + (start - target) * (1 - step / steps) ** 3
