# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title Evaluation metrics, reported by the participants themselves
@license Apache-2.0
@notice Nobody can check these numbers, so nothing is paid or decided by them. Values are
        fixed-point, in units of 2**-20; what each place means is said in the task's bundle.
"""

import fedavg
import seam

MAX_METRICS: constant(uint256) = 8
MAX_VALUE: constant(int256) = 2**127


struct Totals:
    reports: uint256
    # Per metric: a participant may report fewer metrics than another.
    samples: uint256[MAX_METRICS]
    sums: int256[MAX_METRICS]


event EvaluationRequested:
    task: indexed(uint256)
    round: indexed(uint256)
    model: fedavg.Blob
    ends: uint256


event Reported:
    task: indexed(uint256)
    round: indexed(uint256)
    participant: indexed(address)
    samples: uint256
    metrics: DynArray[int256, MAX_METRICS]


# When the evaluation of the model that a round made ends; 0 if none was asked for.
evaluation_ends: HashMap[uint256, HashMap[uint256, uint256]]
totals: HashMap[uint256, HashMap[uint256, Totals]]
reported: HashMap[uint256, HashMap[uint256, HashMap[address, bool]]]


@internal
def _request(task: uint256, round: uint256, model: fedavg.Blob, seconds: uint256):
    """
    @notice Ask the participants to evaluate the model that `round` made.
    """
    ends: uint256 = block.timestamp + seconds
    self.evaluation_ends[task][round] = ends
    log EvaluationRequested(task=task, round=round, model=model, ends=ends)


@internal
def _report(
    task: uint256,
    round: uint256,
    participant: address,
    samples: uint256,
    metrics: DynArray[int256, MAX_METRICS],
):
    assert self.evaluation_ends[task][round] > 0, "rounds: no evaluation requested"
    assert block.timestamp < self.evaluation_ends[task][round], "rounds: evaluation is over"
    assert not self.reported[task][round][participant], "rounds: already reported"
    assert samples > 0 and samples <= seam.MAX_SAMPLES, "rounds: samples out of range"
    assert len(metrics) > 0, "rounds: no metrics"

    self.reported[task][round][participant] = True
    self.totals[task][round].reports += 1
    index: uint256 = 0
    for metric: int256 in metrics:
        assert metric >= -MAX_VALUE and metric <= MAX_VALUE, "rounds: metric out of range"
        self.totals[task][round].samples[index] += samples
        self.totals[task][round].sums[index] += convert(samples, int256) * metric
        index += 1
    log Reported(task=task, round=round, participant=participant, samples=samples, metrics=metrics)


@view
@internal
def _compute_means(task: uint256, round: uint256) -> int256[MAX_METRICS]:
    """
    @notice sum(samples x value) / sum(samples) per metric, rounded towards zero; 0 without reports.
    """
    totals: Totals = self.totals[task][round]
    means: int256[MAX_METRICS] = empty(int256[MAX_METRICS])
    for index: uint256 in range(MAX_METRICS):
        if totals.samples[index] > 0:
            means[index] = totals.sums[index] // convert(totals.samples[index], int256)
    return means
