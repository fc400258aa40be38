"""Models come to the devices: pulled from outside once, then shared in the home."""
