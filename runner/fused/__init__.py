"""Run many jobs as one program, with a lane for each job."""
