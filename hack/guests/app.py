"""A guest in Python (componentize-py): says what it was given, and speaks TCP with itself when it is asked to."""

# What is imported later than here is not in the component.
import encodings.idna  # noqa: F401
import os
import socket
import sys

# componentize-py makes it of the world's interfaces.
from wit_world import exports  # type: ignore[import-not-found]


class Run(exports.Run):  # type: ignore[misc]
    """``wasi:cli/run``."""

    def run(self) -> None:
        """The first argument chooses what is done."""
        words = sys.argv[1:] or ["hello"]
        if words[0] == "hello":
            print("hello from", sys.implementation.name, os.environ.get("WHO", "nobody"))
        elif words[0] == "exit":
            sys.exit(int(words[1]))
        elif words[0] == "connect":
            with socket.create_connection((words[1], int(words[2])), timeout=5) as peer:
                peer.sendall(b"ping\n")
                print("got", peer.recv(100).decode().strip())
        elif words[0] == "copy":
            sys.stdout.write(sys.stdin.read().upper())
