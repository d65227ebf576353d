"""Contracts: their reader, their rules, the tally of what they claim. Knows neither traces nor evidence.

To be read in this order:

- reading: ``discover``, ``files``, ``source``, ``model``, ``names``, ``shell``,
  ``cargo_command``, ``pytest_command``, ``schema``, ``settings``, ``facts``
- what a contract cites: ``evidence_keys``, ``cited_tests``, ``citations``, ``prose``, ``located``,
  ``proofs``, ``cited``, ``bindings``, ``markers``, ``roots``, ``resolution``, ``resolve``, ``resolve_tests``,
  ``resolve_cargo``, ``cargo_maybe``, ``filterset``, ``resolve_pytest``, ``recipes``, ``tox``,
  ``resolve_target``, ``hollow``, ``marked``
- judging: ``validate``, ``rules``, ``statuses``, ``standing``, ``problem``, ``history``, ``baseline``,
  ``outcome``
- at scale: ``engine``, ``ahead``, ``cache``
- telling: ``report``, ``output``, ``tally``
- what evidence binds, and how a status moves: ``claim``, ``promote``, ``pins``, ``changelog``, ``spans``,
  ``replace``
"""
