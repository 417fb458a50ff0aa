"""Jobs on a cluster: rendered, bound to a study, linted, submitted, watched. Only the commands import it."""
