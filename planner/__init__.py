"""Values in, plan out: profiles, the cost model, the search, and the reason in words. No I/O."""
