"""Where the time goes, stage by stage: `python -m dca_fast.profile`."""
