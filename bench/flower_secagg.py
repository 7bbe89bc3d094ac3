"""Flower's side of `medinet bench secagg`: the functions that its SecAgg+ is made of, at the sizes of crates/secagg.

usage: flower_secagg.py COORDINATES SITES NEIGHBOURS THRESHOLD     (needs requirements-bench.txt)

Takes requests as lines of JSON from standard input, as cli/src/bench/child.rs describes: "share-keys" and "mask", a site's
steps, and "unmask" with a number of lost sites, the server's. Its functions use one thread.
"""

import json
import os
import sys
import time

import flwr
import numpy as np
from flwr.common import ndarray_to_bytes
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)

MOD_RANGE = 1 << 32


def timed(name, work, count):
    """Wall and CPU seconds of each time, and the last result."""
    wall, cpu = [], []
    for _ in range(count):
        start, start_cpu = time.perf_counter(), time.process_time()
        result = work()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return {f"{name}.wall": wall, f"{name}.cpu": cpu}, result


def keys():
    private, public = generate_key_pairs()
    return private_key_to_bytes(private), public_key_to_bytes(public)


def agree(private, public):
    return generate_shared_key(bytes_to_private_key(private), bytes_to_public_key(public))


class Site:
    """What one site and the server compute, with keys of all neighbours at hand."""

    def __init__(self, coordinates, sites, neighbours, threshold):
        self.sites, self.neighbours, self.threshold = sites, neighbours, threshold
        self.shapes = [(coordinates,)]
        self.own, self.peers = keys(), [keys() for _ in range(neighbours)]
        self.vector = [np.random.default_rng(1).integers(0, 1 << 22, coordinates)]
        self.masked = self.vector
        self.seed_shares = self.shares(os.urandom(32))[:threshold]
        self.key_shares = self.shares(self.own[0])[:threshold]

    def shares(self, secret):
        return create_shares(secret, self.threshold, self.neighbours + 1)

    def random(self, seed):
        return pseudo_rand_gen(seed, MOD_RANGE, self.shapes)

    def share_keys(self):
        """What a client does in stage 1."""
        seed_shares, key_shares = self.shares(os.urandom(32)), self.shares(self.own[0])
        for number, peer in enumerate(self.peers):
            text = share_keys_plaintext_concat(1, number + 2, seed_shares[number], key_shares[number])
            encrypt(agree(self.own[0], peer[1]), text)

    def pairwise(self, vector, private):
        for number, peer in enumerate(self.peers):
            add = parameters_addition if number % 2 else parameters_subtraction
            vector = add(vector, self.random(agree(private, peer[1])))
        return vector

    def mask(self):
        """What a client does to its quantized vector in stage 2."""
        vector = parameters_addition(self.vector, self.random(os.urandom(32)))
        return parameters_mod(self.pairwise(vector, self.own[0]), MOD_RANGE)

    def unmask(self, lost):
        """What the server does in stage 3."""
        vector = self.masked
        for _ in range(self.sites - lost):
            vector = parameters_subtraction(vector, self.random(combine_shares(self.seed_shares)))
        for _ in range(lost):
            vector = self.pairwise(vector, combine_shares(self.key_shares))
        return parameters_mod(vector, MOD_RANGE)

    def serve(self, request):
        task, count = request["task"], request.get("count", 1)
        if task == "share-keys":
            return timed(task, self.share_keys, count)[0]
        if task == "mask":
            figures, self.masked = timed(task, self.mask, count)
            figures["upload"] = [sum(len(ndarray_to_bytes(part)) for part in self.masked)]
            return figures
        if task == "unmask":
            return timed(task, lambda: self.unmask(request.get("lost", 0)), count)[0]
        raise ValueError(f"no such task: {task}")


def main():
    site = Site(*map(int, sys.argv[1:]))
    print(json.dumps({"runtime": f"Flower {flwr.__version__} SecAgg+"}), flush=True)
    for line in sys.stdin:
        try:
            answer = {"figures": site.serve(json.loads(line))}
        except ValueError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
