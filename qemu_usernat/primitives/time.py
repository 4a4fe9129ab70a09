"""Time as the core knows it: a float of seconds on somebody's monotonic clock, always an argument.

A constant of time carries its unit: ``RTO_MINIMUM = 200 * MS``.
"""

MS = 0.001
SECOND = 1.0
MINUTE = 60.0
HOUR = 3600.0

NEVER = float("inf")
"""A deadline that does not exist."""
