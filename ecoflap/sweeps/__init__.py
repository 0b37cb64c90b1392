"""Many runs at once: processes on this machine, or jobs of Slurm, through submitit."""
