"""Flower's SecAgg+ functions and crates/secagg, with the same sizes, in one run on one machine.

    python -m venv .venv && .venv/bin/pip install -r requirements-bench.txt
    .venv/bin/python bench/flower_secagg.py

CPU seconds of this process for Flower (its functions are single-threaded); wall seconds of one thread for ours, as printed by
`cargo run --release -p medinet-secagg --example cost -- quick`, which is run first. 1,000,000 coordinates, 100 sites, 21 neighbours.
"""

import os
import re
import subprocess
import sys
import time

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

COORDINATES = 1_000_000
SITES, NEIGHBOURS, THRESHOLD = 100, 21, 12
MOD_RANGE = 1 << 32
SHAPES = [(COORDINATES,)]


def cpu(work, repeat=1):
    """Median CPU seconds and the last result."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        result = work()
        times.append(time.process_time() - start)
    return sorted(times)[len(times) // 2], result


def keys():
    private, public = generate_key_pairs()
    return private_key_to_bytes(private), public_key_to_bytes(public)


def agree(private, public):
    return generate_shared_key(bytes_to_private_key(private), bytes_to_public_key(public))


def share_keys(own, peers):
    """What a client does in stage 1."""
    seed = os.urandom(32)
    seed_shares = create_shares(seed, THRESHOLD, NEIGHBOURS + 1)
    key_shares = create_shares(own[0], THRESHOLD, NEIGHBOURS + 1)
    for number, peer in enumerate(peers):
        text = share_keys_plaintext_concat(1, number + 2, seed_shares[number], key_shares[number])
        encrypt(agree(own[0], peer[1]), text)


def mask(vector, own, peers):
    """What a client does to its quantized vector in stage 2."""
    vector = parameters_addition(vector, pseudo_rand_gen(os.urandom(32), MOD_RANGE, SHAPES))
    for number, peer in enumerate(peers):
        pair = pseudo_rand_gen(agree(own[0], peer[1]), MOD_RANGE, SHAPES)
        vector = (parameters_addition if number % 2 else parameters_subtraction)(vector, pair)
    return parameters_mod(vector, MOD_RANGE)


def unmask(vector, seed_shares, key_shares, peers, dropped):
    """What the server does in stage 3."""
    for _ in range(SITES - dropped):
        vector = parameters_subtraction(vector, pseudo_rand_gen(combine_shares(seed_shares), MOD_RANGE, SHAPES))
    for _ in range(dropped):
        private = combine_shares(key_shares)
        for number, peer in enumerate(peers):
            pair = pseudo_rand_gen(agree(private, peer[1]), MOD_RANGE, SHAPES)
            vector = (parameters_addition if number % 2 else parameters_subtraction)(vector, pair)
    return parameters_mod(vector, MOD_RANGE)


def flower():
    own, peers = keys(), [keys() for _ in range(NEIGHBOURS)]
    vector = [np.random.default_rng(1).integers(0, 1 << 22, COORDINATES)]
    figures = {}
    figures["share keys"], _ = cpu(lambda: share_keys(own, peers), 5)
    figures["mask"], masked = cpu(lambda: mask(vector, own, peers), 5)
    figures["upload"] = sum(len(ndarray_to_bytes(part)) for part in masked)
    seed_shares = create_shares(os.urandom(32), THRESHOLD, NEIGHBOURS + 1)[:THRESHOLD]
    key_shares = create_shares(own[0], THRESHOLD, NEIGHBOURS + 1)[:THRESHOLD]
    for dropped in (0, 10):
        figures[f"unmask, {dropped} lost"], _ = cpu(
            lambda dropped=dropped: unmask(masked, seed_shares, key_shares, peers, dropped)
        )
    return figures


def ours():
    command = ["cargo", "run", "--release", "-q", "-p", "medinet-secagg", "--example", "cost", "--", "quick"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(text)
    figures = {}
    for block in text.split("\n\n")[1:]:
        head, *lines = block.strip().splitlines()
        if f"{SITES} sites, {NEIGHBOURS} neighbours" not in head:
            continue
        bits, lost = re.search(r"of (\d+) bits, (\d+) lost", head).groups()
        values = {}
        for line in lines:
            if found := re.match(r"\w+: ([\w ]+?) +([\d.]+)", line):
                values[found[1]] = float(found[2])
        figures.setdefault(int(bits), {})[int(lost)] = values
    return figures


def main():
    medinet, flwr = ours(), flower()
    for bits, by_lost in sorted(medinet.items()):
        print(f"\n{bits}-bit ring                  Flower       ours    ratio")
        rows = [("share keys", 0, "share keys"), ("mask", 0, "mask"), ("upload", 0, "upload")]
        rows += [(f"unmask, {lost} lost", lost, "unmask") for lost in (0, 10)]
        for name, lost, key in rows:
            theirs, mine = flwr[name], by_lost[lost][key]
            print(f"{name:22} {theirs:12.5f} {mine:10.5f} {theirs / mine:8.1f}")


if __name__ == "__main__":
    sys.exit(main())
