"""What a network's output says of data: distributions that are drawn from and scored."""
