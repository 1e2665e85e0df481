"""Consensus: finality in message delays, the hunt for mutants, and what a certificate costs.

Nothing here is a matter of luck but the new seeds, which are printed, and the certificate's time.
"""

from statistics import median
from time import perf_counter, process_time

from steelyard.chain.bls import DEFAULT, SecretKey, Signature, compute_public_key, sign
from steelyard.chain.consensus.certificates import build_certificate, check_certificate
from steelyard.chain.consensus.validators import Validator, ValidatorSet
from steelyard.chain.consensus.votes import Kind, Statement, Vote, compute_signing_root
from steelyard.chain.types import Address, Domain, Epoch, Hash, Power, View
from tests.simulation.campaign import SEED_BUDGET, draw_new_seeds, hunt, run_campaign
from tests.simulation.latency import measure_finality
from tests.simulation.mutants import MUTANTS

from .timing import Measurement

BLOCKS = {4: 40, 16: 20, 100: 8}
"""Validators to blocks."""
NETWORKS = {4: 9, 16: 5, 100: 2}
"""Validators to how many networks are drawn: with few validators it matters who is where."""
NEW_SEEDS = 150
DOMAIN = Domain(b"\x07" * 32)
SIGNERS = 100
CHECKS = 30


def run() -> list[Measurement]:
    """Return a row per size, mutant and campaign; the named figures are in their `figures`."""
    return [*measure_delays(), *hunt_mutants(), search_seeds(), time_certificate()]


def measure_delays() -> list[Measurement]:
    rows = []
    for count, blocks in BLOCKS.items():
        runs = [measure_finality(count, blocks, seed) for seed in range(1, NETWORKS[count] + 1)]
        delays = median(run.median_delays for run in runs)
        rows.append(
            Measurement(
                f"{count} validators, 50-150 ms",
                "finality, simulated",
                delays * median(run.delay_ms for run in runs) / 1000,
                1.0,
                {
                    "delays, median": delays,
                    "delays, worst network": max(run.median_delays for run in runs),
                    "delays, p90": median(run.p90_delays for run in runs),
                    "blocks": sum(run.blocks for run in runs),
                },
                {f"sim_delays_{count}": round(delays, 3)},
            )
        )
    return rows


def hunt_mutants() -> list[Measurement]:
    rows, killed = [], 0
    for mutant in MUTANTS:
        start = process_time()
        result = hunt(mutant)
        killed += result is not None
        fate = "SURVIVES" if result is None else result.violation
        seed = -1 if result is None else result.seed
        case = f"rule {mutant.rule}, {mutant.name}"
        rows.append(Measurement(case, fate, process_time() - start, 1.0, {"first seed": seed}))
    figures = {"mutants_total": len(MUTANTS), "mutants_killed": killed}
    rows.append(Measurement("mutants", "killed", 0.0, 1.0, {"killed": killed}, figures))
    return rows


def search_seeds() -> Measurement:
    new = draw_new_seeds(NEW_SEEDS)
    print(f"  new seeds: {new}")
    start = process_time()
    campaign = run_campaign([*range(SEED_BUDGET), *new])
    for result in campaign.broken:
        print(f"  seed {result.seed}: {result.detail}")
    return Measurement(
        "the core as it is",
        "seeds",
        process_time() - start,
        1.0,
        {
            "seeds": len(campaign.seeds),
            "violations": len(campaign.broken),
            "capped": len(campaign.capped),
            "events": campaign.events,
        },
        {"sim_seeds": len(campaign.seeds), "sim_violations": len(campaign.broken)},
    )


def time_certificate() -> Measurement:
    """Check a certificate of 100 signers again and again: its keys are decompressed by then."""
    secrets = [SecretKey(1000 + place) for place in range(SIGNERS)]
    validators = ValidatorSet(
        tuple(
            Validator(Address(bytes([place + 1]) * 20), compute_public_key(secret), Power(1))
            for place, secret in enumerate(secrets)
        )
    )
    statement = Statement(Epoch(1), View(1), Kind.FINALIZE, Hash(b"\x01" * 32))
    root = compute_signing_root(statement, DOMAIN)
    votes = [Vote(statement, i, Signature(sign(s, root))) for i, s in enumerate(secrets)]
    certificate = build_certificate(votes, validators)
    times = []
    check_certificate(certificate, validators, DOMAIN)
    for _ in range(CHECKS):
        start = perf_counter()
        check_certificate(certificate, validators, DOMAIN)
        times.append(perf_counter() - start)
    return Measurement(
        f"certificate, {SIGNERS} signers",
        type(DEFAULT).__name__.lower(),
        median(times),
        1.0,
        {"worst ms": max(times) * 1000},
        {f"certificate_{SIGNERS}_ms": round(median(times) * 1000, 3)},
    )
