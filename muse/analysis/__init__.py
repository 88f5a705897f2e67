"""Looking at trained models: reports and pictures."""
