"""A fuzzer for every reader of files: sound files, changed where their structure is, read under limits.

An input is accepted or refused by a typed error of ``apr_falsify.errors``, within 2 s, and without making the
process grow by more than 4 times the input and 64 MB; anything else is a defect. Every input follows from its
reader, a seed and a number alone: that is how a case is kept.

``python -m tests.fuzz`` runs a campaign. To be read in this order: ``readers/table`` (what is fuzzed), one of
the readers there, ``blobs``, ``trees``, ``lines``, ``zips`` and ``folders`` (how sound files are changed,
with ``maps`` of binary formats and ``odd`` values), ``gauge`` (the limits), ``chunk`` (many inputs),
``campaign`` and ``worker`` (on several processes), ``__main__`` (the command).
"""
