"""What the node remembers: studies and their instances, the job queue, the outbox, quarantine.

SQLAlchemy Core over SQLite (default) or PostgreSQL, one contract for both. Nothing here imports
torch or opens a DICOM file.
"""
