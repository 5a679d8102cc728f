"""What holds for all tests."""

import signal
import threading

from hypothesis import HealthCheck, settings

# A first call may compile a kernel, and the machine may have other work: no test depends on time.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Shells start what they run in the background with Ctrl-C ignored, and so would be all processes that tests interrupt.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
