"""One file per DAG: gather, decide, record, act."""
