"""The parts of the page, each of one session; they meet in `hcs_ray.explore.session`."""
