"""The uses: photos in, pictures out."""
