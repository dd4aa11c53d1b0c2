"""A little of :mod:`reliability`, at every change; all of it is a workflow of its own."""

import reliability
from reliability import LOST


def lost(outcomes) -> int:
    return sum(count for outcome, count in outcomes.items() if outcome.startswith(LOST))


def test_changed_settings_and_damaged_files_lose_nothing(tmp_path):
    for name in ("settings", "damage"):
        part, _, short = reliability.PARTS[name]
        outcomes = part(tmp_path, short, 1)
        assert outcomes.total() == short and not lost(outcomes), outcomes


def test_a_fault_would_be_seen(tmp_path, monkeypatch):
    """A traceback, and files whose digest nobody looks at."""
    monkeypatch.setattr(reliability.cli, "main", lambda _: {}["key"])
    assert lost(reliability.settings(tmp_path, 2, 1)) == 2
    monkeypatch.setattr("study.data.loader.digest", lambda meta: meta["digest"])
    monkeypatch.setattr("study.results.files.digest", lambda result, _: result["digest"])
    assert lost(reliability.damage(tmp_path, 100, 1))
