"""The running node: who does what in which process.

``supervisor`` keeps the processes alive; ``indexer`` and ``assembler`` turn the spool into queued
studies; ``analysis`` is one study's way from images to result objects; ``worker`` claims jobs;
``deliverer`` empties the outbox; ``coordinator`` holds the timers.
"""
