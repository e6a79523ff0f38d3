"""The agent in the machine, in C: its sources, and how it is compiled."""
