"""What holds for all tests."""

from hypothesis import HealthCheck, settings

# A first call may compile a kernel, and the machine may have other work: no test depends on time.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
