"""What the host and the agent in a virtual machine say to each other, without I/O."""
