from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadlines, since machines are busy at times; the same examples each time, so that a failure
# comes from a change.
settings.register_profile(
    "project",
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("project")
