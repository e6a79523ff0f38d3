"""Reference pages made from the code: ``python -m hack.reference``, or ``make reference``.

A page has blocks between two marks that are written here; what is around them is written by hand. The texts are below
the fields that they are about, in the models themselves: a key, its check and what is said of it are one change.
"""
