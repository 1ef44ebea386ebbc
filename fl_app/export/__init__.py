"""A model in the forms that other tools take, and a card that says what it is."""
