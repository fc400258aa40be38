"""Named faults on real daemons: what is done to a home, what is seen of it, and what it costs."""
