"""What is measured on a GPU on the first day that there is one."""
