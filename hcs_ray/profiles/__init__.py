"""Profiles: field -> well -> treatment, normalised on controls, scored by the field's own benchmark."""
