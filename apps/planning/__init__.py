"""The leader's loop and every device's side of a plan."""
