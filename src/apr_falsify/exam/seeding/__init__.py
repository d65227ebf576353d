"""How faults are made: wrong formulas, wrong tensors, wrong configs."""
