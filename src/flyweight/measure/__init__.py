"""Honest measurement: quality against gold and parent, latency, memory, the machine, and the classic line."""
