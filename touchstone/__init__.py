"""The domain, pure: models, decisions, statistics."""
