"""Faults on purpose: seeded schedules against real clusters."""
