"""Programs that produce a trace: one file a runtime, one interface, one table."""
