"""From bytes to device work: Kineto and Nsight Systems."""
