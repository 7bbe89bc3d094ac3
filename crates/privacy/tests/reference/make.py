"""Writes reference.json: privacy parameters computed by Google's dp-accounting (Apache-2.0), values only.

    python3 -m venv .venv && .venv/bin/pip install dp-accounting==0.6.0
    .venv/bin/python crates/privacy/tests/reference/make.py

Each case holds the epsilon of the RDP accountant, with its default orders and with the integers among them, and of
the PLD accountant (pessimistic, connect the dots). The integers are apart because dp-accounting 0.6.0 sums its series for
fractional orders without the signs of the binomial coefficients (and drops orders where it does not converge), which
is an upper bound, but not the divergence; at integers both compute the same sum. The PLD's interval is chosen per case and the value is kept only when it
differs by less than 0.2% from the one at half the interval, so that the table does not hold discretisation error.
"""

import importlib.metadata
import itertools
import json
import math
import pathlib
import sys

from dp_accounting import dp_event
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import rdp_privacy_accountant as rdp

ORDERS = [round(float(order), 1) for order in rdp.DEFAULT_RDP_ORDERS]
INTEGERS = [order for order in ORDERS if order == int(order)]


def homogeneous():
    """Picks of (q, sigma, steps, delta) that cover every value of every axis and their corners."""
    rates = [1e-4, 1e-3, 256 / 60000, 0.01, 0.1, 0.5, 1.0]
    sigmas = [0.4, 0.6, 0.8, 1.1, 2.0, 5.0, 20.0]
    steps = [1, 10, 100, 1000, 10_000, 100_000]
    deltas = [1e-9, 1e-7, 1e-5, 1e-3]
    full = list(itertools.product(rates, sigmas, steps, deltas))
    # A stride coprime to every axis walks through all of their values.
    picks = [full[(i * 89 + 17) % len(full)] for i in range(110)]
    corners = list(itertools.product([1e-4, 1.0], [0.4, 20.0], [1, 100_000], [1e-9, 1e-3]))
    tutorial = [(256 / 60000, 1.1, 60 * 60000 // 256, 1e-5), (0.01, 4.0, 10_000, 1e-5)]
    return [[case[:3]] + [case[3]] for case in picks + corners + tutorial]


def mixtures():
    """Events of different rate and noise, composed."""
    return [
        ([(0.01, 1.0, 1000), (0.02, 2.0, 500)], 1e-5),
        ([(0.01, 1.0, 300), (1.0, 10.0, 5)], 1e-6),
        ([(0.1, 3.0, 100), (0.001, 0.7, 5000), (0.5, 8.0, 20)], 1e-7),
        ([(1.0, 30.0, 40), (0.05, 1.5, 400)], 1e-9),
        ([(0.2, 5.0, 50), (0.2, 4.0, 50), (0.2, 3.0, 50), (0.2, 2.5, 50)], 1e-5),
    ]


def rdp_epsilon(events, delta, orders):
    accountant = rdp.RdpAccountant(orders=orders)
    for q, sigma, steps in events:
        gaussian = dp_event.GaussianDpEvent(sigma)
        sampled = gaussian if q == 1.0 else dp_event.PoissonSampledDpEvent(q, gaussian)
        accountant.compose(dp_event.SelfComposedDpEvent(sampled, steps))
    return float(accountant.get_epsilon(delta))


def deviation(q, sigma):
    """Rough standard deviation of one step's privacy loss."""
    if q == 1.0:
        return 1 / sigma
    return q * math.sqrt(math.expm1(min(1 / sigma**2, 50.0)))


def pld_epsilon(events, delta, interval):
    total = None
    for q, sigma, steps in events:
        if q == 1.0:
            one = pld.from_gaussian_mechanism(sigma / math.sqrt(steps), value_discretization_interval=interval)
        else:
            one = pld.from_gaussian_mechanism(
                sigma, sampling_prob=q, value_discretization_interval=interval).self_compose(steps)
        total = one if total is None else total.compose(one)
    return float(total.get_epsilon_for_delta(delta))


def evaluate(events, delta):
    by_rdp = rdp_epsilon(events, delta, ORDERS)
    if not 1e-6 < by_rdp < 500:
        return None
    steps = sum(e[2] for e in events)
    mean = math.sqrt(sum(e[2] * deviation(*e[:2]) ** 2 for e in events) / steps)
    interval = min(2e-4, 0.05 * mean)
    coarse, fine = (pld_epsilon(events, delta, interval / k) for k in (1, 2))
    if not (math.isfinite(fine) and fine > 1e-6) or abs(coarse - fine) > 2e-3 * fine:
        print("not converged, left out:", events, delta, coarse, fine, file=sys.stderr)
        return None
    return {
        "events": [{"sampling_rate": q, "noise_multiplier": s, "steps": t} for q, s, t in events],
        "delta": delta,
        "rdp_epsilon": by_rdp,
        "rdp_epsilon_integer_orders": rdp_epsilon(events, delta, INTEGERS),
        "pld_epsilon": fine,
    }


def main():
    cases = [evaluate(list(case[:-1]), case[-1]) for case in homogeneous()]
    cases += [evaluate(events, delta) for events, delta in mixtures()]
    cases = [case for case in cases if case is not None]
    document = {
        "source": "Google dp-accounting (https://github.com/google/differential-privacy), Apache-2.0; values only",
        "version": importlib.metadata.version("dp-accounting"),
        "written_by": "crates/privacy/tests/reference/make.py",
        "adjacency": "add or remove one",
        "orders": ORDERS,
        "integer_orders": INTEGERS,
        "cases": cases,
    }
    path = pathlib.Path(__file__).with_name("reference.json")
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()
