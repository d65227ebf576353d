"""Bring two traces to one layout, compare them, and say where they part.

To be read in this order:

- the procedure and its answer: ``localise``, ``bisection``, ``rows``, ``findings``, ``foreign``,
  ``unchecked``; what may break down in it: ``attempts``; what of a mixture stands twice: ``last_token``
- structure before values: ``structure``, ``axes``, ``layout``, ``convention``,
  ``conventions``, ``proof``
- what a recording takes from the oracle's run, or leaves out beside it: ``borrowed``
- figures of two arrays: ``metrics``, ``sums``, and the rule that others publish: ``published``
- the weights themselves: ``weights``, ``format_costs``, ``systematic``, ``rescaled_channels``,
  ``quantised_tensors``, ``misreadings``, ``low_rank``
- every stage from its own inputs: ``judge``, ``fit``, ``doubt``, ``replay``, ``site``, ``products``,
  ``operands``, ``experts``, and attention as one: ``fused``
- in which number format a run holds its values: ``stored_format``, ``seen_format``,
  ``recorded_formats``, and read once more: ``read_again``
- how large rounding may be: ``floor``, ``roundoff``, ``repeated``, ``excess``
- values on the edge between two steps: ``crossing``, ``edges``, ``attention_edges``,
  ``grain_edges``
- what holds without a reference: ``invariants``
- what explains an error: ``search``, ``cause``, ``causes``, ``variations``
- one kernel apart from all others: ``kernel_case``
"""
