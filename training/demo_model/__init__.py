"""How the demo checkpoint is made: synthesis, codec, talker, export, evaluation. See README.md."""
