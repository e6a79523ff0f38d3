"""What a container is: the fingerprint of what will run, fresh randomness in bits, and a score of trust."""
