-- theorem split_keeps_names
/- to be
   proved -/
