"""Delivery of results: C-STORE to the destinations, what their statuses mean, and when to retry.

Imports pynetdicom and pydicom; never torch, never the database.
"""
