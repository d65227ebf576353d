"""Which array of a recording is which stage: found by replay, in this order.

``forms``, ``bag``: in which forms an array may hold a place, and which arrays are near to given values.
``forward``: the forward pass from the run's own arrays. ``names``: decides between equal arrays.
``readers``: what those that are computed from a place say of an array.
``search``: by inputs, by readers, by place. ``mixed``: arrays of two runs.
``result``, ``wire``: what a mapping file can say of it.
"""
