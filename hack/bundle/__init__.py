"""The node bundle: ForgeOne with a Python, libraries and programs of its own, for any Linux host.

``python -m hack.bundle`` writes ``forgeone-VERSION-ARCH.tar.gz`` and, where asked, a Debian package and an OCI image of
the same tree. docs/bundle.md says what is in it and why.
"""
