"""What every room uses: the backend, random numbers, files, arguments, configurable objects."""
