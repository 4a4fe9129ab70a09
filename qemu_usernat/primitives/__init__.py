"""The vocabulary that every room shares: addresses, sequence numbers, time, errors, counters."""
