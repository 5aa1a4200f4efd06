"""What the machine can do: device and precision, memory, attention kernels."""
