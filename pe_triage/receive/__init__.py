"""Receiving: the storage SCP, who may come in, and the spool that makes 0000 true.

Imports pynetdicom and the standard library; never torch, never the database.
"""
