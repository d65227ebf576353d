"""Contracts: their reader, their rules, the tally of what they claim. Knows neither traces nor evidence.

To be read in this order:

- reading: ``discover``, ``files``, ``source``, ``model``, ``names``, ``schema``, ``settings``, ``facts``
- what a contract cites: ``citations``, ``markers``, ``roots``, ``resolve``, ``resolve_tests``,
  ``resolution``, ``marked``
- judging: ``validate``, ``rules``, ``statuses``, ``standing``, ``problem``, ``history``, ``baseline``,
  ``outcome``
- at scale: ``engine``, ``parts``, ``cache``
- telling: ``report``, ``output``, ``tally``
- what evidence binds, and how a status moves: ``claim``, ``promote``, ``pins``, ``changelog``, ``spans``,
  ``replace``
"""
