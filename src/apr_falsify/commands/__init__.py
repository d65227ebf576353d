"""One verb a file; main.py wires them.

- wiring, and what verbs share: ``main``, ``options``, ``passes``, ``output``, ``progress``
- verbs: ``bisect``, ``capture``, ``compare``, ``sweep``, ``faults``, ``evidence``, ``promote``, ``status``,
  ``doctor``, and the program ``validate_contracts``
- the two sides of a comparison: ``specs``, ``sides``, ``tokenizers``, ``live``,
  ``runtimes``, ``transformers_subject``, ``live_wired``, ``torch_subject``, ``onnx_subject``; what is
  reported of it: ``report``, ``page``
- behind ``capture``: ``export_kernel``, ``kernel_files``; ``print_mapping``, ``wired``, ``wired_text``,
  ``starter``, ``starter_match``, ``starter_names``, ``starter_text``
- behind ``sweep``: ``sweep_worker``
- behind ``faults``: ``examine``, ``exam_pool``, ``exam_worker``, ``hosts``, ``hosts_in_passes``,
  ``apr_host``, ``smollm2``, ``faults_table``
- behind ``evidence``, ``promote`` and ``doctor``: ``evidence_text``, ``standings``, ``standings_cache``,
  ``lanes``, ``lane_needs``, ``checks``
"""
