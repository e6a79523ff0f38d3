"""What a machine boots: the kernel, the initrd with the agent, the command line, and who has signed them."""
