"""onnxruntime's side of `medinet bench inference`: one thread, one image at a time.

usage: onnxruntime_twin.py MODEL.onnx IMAGE.f32 CHANNELS HEIGHT WIDTH     (needs requirements-test.txt)

Takes requests as lines of JSON from standard input, as cli/src/bench/child.rs describes: "load", then "run" with a count.
"""

import json
import sys
import time

import numpy as np
import onnxruntime


def load(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session, {"load": [time.perf_counter() - start]}


def run(session, image, count):
    wall, logits = [], None
    cpu = time.process_time()
    for _ in range(count):
        start = time.perf_counter()
        (logits,) = session.run(["logits"], {"image": image})
        wall.append(time.perf_counter() - start)
    return {"wall": wall, "cpu": [time.process_time() - cpu], "logits": [float(value) for value in logits.ravel()]}


def main():
    path, image, *shape = sys.argv[1:]
    image = np.fromfile(image, dtype="<f4").reshape(1, *map(int, shape))
    session = None
    print(json.dumps({"runtime": f"onnxruntime {onnxruntime.__version__}"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["task"] == "load":
            session, figures = load(path)
        elif request["task"] == "run":
            figures = run(session, image, request["count"])
        else:
            print(json.dumps({"error": f"no such task: {request['task']}"}), flush=True)
            continue
        print(json.dumps({"figures": figures}), flush=True)


if __name__ == "__main__":
    main()
