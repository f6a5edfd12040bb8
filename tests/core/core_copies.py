"""Copies among the actions of a run."""

from __future__ import annotations

from core_cases import Outcome

from batchgen import actions as act


def copies(outcome: Outcome, purpose: str) -> list[act.Copy]:
    return [
        action
        for entry in outcome.entries
        for action in entry.actions
        if isinstance(action, act.Copy) and action.purpose == purpose
    ]
