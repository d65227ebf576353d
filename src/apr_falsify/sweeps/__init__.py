"""Sweeps: one bisection after another over models, subjects and texts, each in a directory of its own.

To be read in this order:

- what is to run: ``job``, ``plan``
- what has run: ``runs``
- who runs it: ``worker``, ``local``, ``on_ray``
- what came of it: ``summary``, ``page``, ``formats``
"""
