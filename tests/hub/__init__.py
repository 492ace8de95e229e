"""A Hub on the loopback interface, and tests of the real clients in front of it."""
