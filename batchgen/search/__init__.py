"""The search of plans: what a job could run on and how, the fastest of it by simulating, and the
cheapest cluster that meets a deadline. It knows no simulator: one is passed in."""
