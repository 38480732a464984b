"""Canary evaluation: when a version is promoted or rolled back, without a server."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.models.promotion import Comparison, Failure, PromotionPolicy, ShadowEvaluation, Timing, percentile

POLICY = PromotionPolicy(requests=10, min_agreement=0.9, max_slowdown=1.5, max_failures=0.1)


def timing(seconds: float = 0.01) -> Timing:
    return Timing(seconds / 2, seconds, seconds * 2)


def compared(number: int = 0, *, agreement: float = 1.0, seconds: float = 0.01) -> Comparison:
    """A comparison with a served version that takes 10 ms."""
    return Comparison(f"r{number}", timing(), timing(seconds), agreement)


def failed(number: int = 0) -> Failure:
    return Failure(f"r{number}", "backend_failed: no")


def evaluate(*results: Comparison | Failure, policy: PromotionPolicy = POLICY) -> ShadowEvaluation:
    evaluation = ShadowEvaluation(policy, clock=iter(range(100)).__next__)
    for result in results:
        evaluation.add(result)
    return evaluation


def test_version_that_meets_the_policy_is_promoted_after_the_required_number_of_requests() -> None:
    before, after = evaluate(*[compared()] * 9), evaluate(*[compared()] * 10)

    assert before.decision is None
    assert after.decision is not None
    assert after.decision.promoted
    assert (after.started_at, after.decided_at) == (0, 1)


def test_version_that_disagrees_is_rolled_back_as_soon_as_it_can_no_longer_pass() -> None:
    evaluation = evaluate(*[compared(agreement=0.4)] * 3)

    assert evaluation.requests == 2
    assert evaluation.decision is not None
    assert evaluation.decision.reason == (
        "Its mean agreement with the served version is 0.400 over 2 requests; at least 0.9 is required."
    )


def test_version_that_fails_too_often_is_rolled_back_at_once() -> None:
    evaluation = evaluate(failed(1), compared(), failed(2), compared())

    assert evaluation.requests == 3
    assert evaluation.decision is not None
    assert not evaluation.decision.promoted
    assert evaluation.decision.reason == (
        "It failed 2 of 3 requests; at most 10.00% of 10 may fail. First failure: backend_failed: no"
    )
    assert evaluation.first_failures == [failed(1), failed(2)]


def test_version_that_is_too_slow_is_rolled_back_after_the_last_request() -> None:
    evaluation = evaluate(*[compared(seconds=0.02)] * 10)

    assert evaluation.decision is not None
    assert evaluation.decision.reason == (
        "Its median request takes 1.83 times as long as the served version's (20 ms and 10 ms); at most 1.5 times is "
        "allowed."
    )


def test_running_second_is_no_advantage() -> None:
    first, second = timing(0.02), timing(0.01)
    pairs = [
        Comparison("r", first, second, 1.0, served_first=True),
        Comparison("r", second, first, 1.0, served_first=False),
    ]

    assert evaluate(*pairs, *pairs, pairs[0]).slowdown == pytest.approx(1)


def test_results_after_the_decision_are_ignored() -> None:
    evaluation = evaluate(*[compared()] * 10)

    evaluation.add(failed())
    evaluation.skip()

    assert (evaluation.requests, evaluation.failed, evaluation.skipped) == (10, 0, 0)


def test_ids_of_the_requests_with_the_lowest_agreement_are_kept() -> None:
    evaluation = evaluate(*(compared(i, agreement=1 - i / 100) for i in range(10)))

    assert [request_id for request_id, _ in evaluation.worst] == ["r9", "r8", "r7", "r6", "r5"]


def test_policy_that_allows_every_failure_promotes_a_version_that_fails() -> None:
    evaluation = evaluate(*map(failed, range(10)), policy=replace(POLICY, max_failures=1.0, min_agreement=0.0))

    assert evaluation.decision is not None
    assert evaluation.decision.promoted


@given(st.lists(st.floats(0, 1) | st.none(), min_size=10, max_size=10), st.floats(0, 1), st.floats(0, 1))
def test_early_decision_is_the_one_that_all_requests_would_have_led_to(
    agreements: list[float | None], min_agreement: float, max_failures: float
) -> None:
    policy = PromotionPolicy(10, min_agreement, 1.5, max_failures)
    results = [failed() if agreement is None else compared(agreement=agreement) for agreement in agreements]
    evaluation = evaluate(*results, policy=policy)
    known = [agreement for agreement in agreements if agreement is not None]
    failure_fraction, mean = (10 - len(known)) / 10, sum(known) / len(known) if known else 0.0

    assert evaluation.decision is not None
    if evaluation.decision.promoted:
        assert failure_fraction <= max_failures + 1e-6
        assert mean >= min_agreement - 1e-6 or not known
    else:
        assert failure_fraction > max_failures - 1e-6 or mean < min_agreement + 1e-6


def test_percentile_is_one_of_the_values() -> None:
    assert percentile([float(i) for i in range(1, 101)], 0.95) == 95
    assert percentile([3.0], 0.95) == 3
    assert percentile([], 0.95) is None
