"""What a long day and a storm of kills cost, and what they leave behind."""
