"""The fault campaign: what a running node survives, and the check that says whether it did."""
