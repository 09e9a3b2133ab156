"""The nouns: schedules, models, triggers, targets, the shift theory, sampling and results."""
