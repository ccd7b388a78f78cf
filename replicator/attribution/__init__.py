"""Who wrote: processes and control groups by the numbers that records carry."""
