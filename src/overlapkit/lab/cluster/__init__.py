"""What needs nemo_run or Slurm."""
