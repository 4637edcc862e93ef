"""The program that is the first process of every sandbox: standard library only, Python 3.8 or later.

`sandbox.program` hands these files to the container as one text. They are ordinary modules, so that the host
imports what both sides must agree on, and tests import the rest.
"""
