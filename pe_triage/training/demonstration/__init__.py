"""How the bundled demonstration model is made: on phantoms alone, by one command."""
