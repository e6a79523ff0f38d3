"""Machines that were booted once and saved, so that others begin from there: :class:`engines.microvm.templates.warm`.

A template is two files of memory: what the guest's memory was, which clones map privately, so that they share what they
do not change, and the state of the machine's devices. It is nobody's: it was saved before it became a pod's.
"""
