"""A home in one process: virtual time, a network in memory, faults by name, a judged history."""
