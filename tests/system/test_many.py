"""Five thousand idle keep-alive connections and five hundred active downloads on one server: one death, all survive."""

from __future__ import annotations

from itertools import islice

from tests.fate import taken_over
from topologies import Lab
from topologies.crowd import Crowd, ports_of

_IDLE, _DOWNLOADS = 5000, 500
_RATE = 64 * 1024


def test_one_death_harms_none_of_thousands_of_connections(lab: Lab) -> None:
    ports = ports_of(lab, "s1")
    idle, downloads = list(islice(ports, _IDLE)), list(islice(ports, _DOWNLOADS))
    with Crowd(lab, "c1", idle=idle, downloads=downloads, path="/1m", rate=_RATE) as crowd:
        assert crowd.ready()["broken"] == {}
        lab.until(lambda: lab.server("s1")["connections"] == _IDLE + _DOWNLOADS, "not all are on one server")
        before = len(lab.takeovers())
        lab.fail("s1")
        takeover = taken_over(lab, before)
        assert (takeover["resumed"], takeover["reset"]) == (_IDLE + _DOWNLOADS, {})
        answered = crowd.ask()
        assert (answered["whole"], answered["broken"]) == (_IDLE, {})
        ended = crowd.finish()
        assert (ended["whole"], ended["broken"]) == (_DOWNLOADS, {})
    taken_over(lab, before)  # should anybody have been taken for dead for being busy, it harmed nobody
    lab.until(lambda: not lab.connections(), "connections remain that their client has reset")
    lab.heal("s1")
