"""Puts this folder on the path (`oracles`, `strategies`) and frees hypothesis of its stopwatch: machines are shared.

`make test` draws the same examples every time, so it fails when the code is wrong and never by luck; `make soak` draws
new ones (`--hypothesis-profile=soak`).
"""

from hypothesis import HealthCheck, settings

KIND = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("soak", **KIND)
settings.register_profile("test", derandomize=True, **KIND)
settings.load_profile("test")
