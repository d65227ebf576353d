"""What may be wrong with one stage: each variation computes the stage under one hypothesis."""
