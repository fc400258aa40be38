"""The linear algebra: how weights are held, and the compiled loops that multiply them."""
