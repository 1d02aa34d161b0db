"""The side of deepsparse_row.py that runs in DeepSparse's own environment: times models when told to.

Reads a JSON line, answers with one: `{"model": FILE, "batch": tokens}` compiles a model and gives the
output for an input of ones; `{"runs": n}` gives the seconds of the thread's processor time of n runs.
"""

import json
import os
import sys
import time

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # the engine prints a banner
os.environ["NM_DISABLE_ANALYTICS"] = "1"  # or the engine reports its use over the network

import deepsparse  # noqa: E402
import numpy as np  # noqa: E402


def main() -> None:
    engine, x = None, np.zeros(0, np.float32)
    for line in sys.stdin:
        order = json.loads(line)
        if "model" in order:
            engine = None  # the last model's memory goes before the next one's comes
            start = time.perf_counter()
            engine = deepsparse.Engine(order["model"], batch_size=order["tokens"], num_cores=1)
            seconds = time.perf_counter() - start
            x = np.load(order["x"])
            np.save(order["y"], engine.run([x])[0])
            answer = {
                "seconds": seconds,
                "supported": engine.fraction_of_supported_ops,
                "version": deepsparse.__version__,
                "instructions": engine.cpu_avx_type,
            }
        else:
            answer = {"seconds": [timed(engine, x) for _ in range(order["runs"])]}
        print(json.dumps(answer), file=answers, flush=True)


def timed(engine: deepsparse.Engine, x: np.ndarray) -> float:
    start = time.thread_time()
    engine.run([x], val_inp=False)
    return time.thread_time() - start


if __name__ == "__main__":
    main()
