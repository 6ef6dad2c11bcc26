"""Training, evaluation and calibration; nothing that serves imports this room."""
