"""Puts this folder on the path (`oracles`, `strategies`) and frees hypothesis of its stopwatch: machines are shared."""

from hypothesis import HealthCheck, settings

settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("shared")
