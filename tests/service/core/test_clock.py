import time

from enrich_service.core.clock import Clock


def test_a_clock_that_is_set_is_noticed_once_and_one_that_only_goes_on_is_not(monkeypatch):
    clock = Clock()
    assert clock.was_set()  # nobody knows what was before
    clock.remember()
    assert not clock.was_set()
    true = time.time
    for moved in (3600, -3600, 0):
        monkeypatch.setattr(time, "time", lambda moved=moved: true() + moved)
        assert clock.was_set()
        clock.remember()
        assert not clock.was_set()
