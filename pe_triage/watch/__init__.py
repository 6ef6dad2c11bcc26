"""What the node watches of itself, as pure functions: charts, alarms, reconciliation, metrics."""
