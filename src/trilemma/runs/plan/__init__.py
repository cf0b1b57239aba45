"""What a run will take, said before anything is queued for (`debug=plan`)."""
