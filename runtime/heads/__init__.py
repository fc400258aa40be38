"""The vocabulary head cut by rows: each device has some, and tells of its best candidates."""
