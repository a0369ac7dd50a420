"""The exact-colour coder: pictures without loss, alpha planes, and whatever must come back as it was."""
