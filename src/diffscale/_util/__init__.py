"""Small tools that every part shares: errors, files, fingerprints."""
