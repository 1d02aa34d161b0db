"""What a program or an export holds, in figures and in words."""
