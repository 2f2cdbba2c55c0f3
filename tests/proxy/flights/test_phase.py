"""The phases of a Flight, as the table has them."""

from __future__ import annotations

from proxy.flights.phase import TRANSITIONS, Phase


def test_every_phase_is_in_the_table_and_can_be_come_to_but_the_first() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert set().union(*TRANSITIONS.values()) == set(Phase) - {Phase.QUEUED}


def test_from_every_phase_there_is_a_way_to_each_end_and_none_onwards() -> None:
    ends = {phase for phase, leads_to in TRANSITIONS.items() if not leads_to}
    assert ends == {Phase.LANDED, Phase.FAILED, Phase.CANCELLED}
    assert all(ends <= set(leads_to) for phase, leads_to in TRANSITIONS.items() if phase not in ends)
    assert all(phase.leads_to == TRANSITIONS[phase] for phase in Phase)


def test_what_a_reader_has_seen_is_never_asked_for_again_and_nothing_is_skipped() -> None:
    """Word for word: what leads where besides the ends."""
    ends = {Phase.LANDED, Phase.FAILED, Phase.CANCELLED}
    assert {phase: set(leads_to) - ends for phase, leads_to in TRANSITIONS.items() if leads_to} == {
        Phase.QUEUED: {Phase.CONNECTING, Phase.PREFILL, Phase.STREAMING},
        Phase.CONNECTING: {Phase.CONNECTING, Phase.PREFILL},
        Phase.PREFILL: {Phase.CONNECTING, Phase.STREAMING},
        Phase.STREAMING: set(),
    }
