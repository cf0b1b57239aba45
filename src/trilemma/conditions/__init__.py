"""What steers the model: labels, text, and the null condition."""
