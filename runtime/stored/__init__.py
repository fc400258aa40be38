"""Models on this device's disk: where they are, what their pieces are, which are there."""
