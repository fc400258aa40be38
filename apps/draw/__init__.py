"""A plan drawn: who holds what, and who does what when; in the terminal and as a picture."""
